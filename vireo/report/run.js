'use strict';
// All that moves in a run's page; without it everything can still be read.
const all = (query, within = document) => [...within.querySelectorAll(query)];
const read = id => JSON.parse(document.getElementById(id).textContent);

// Evaluations: one at a time.
const { evaluations } = read('page');
document.body.classList.add(evaluations > 1 ? 'tabbed' : 'alone');
function choose(number) {
  all('[data-evaluation]').forEach(part => { part.hidden = part.dataset.evaluation !== number; });
  all('[data-tab]').forEach(tab => tab.setAttribute('aria-pressed', tab.dataset.tab === number));
  all('nav a').forEach(link => {
    const to = link.hash.replace(/-\d+$/, '-' + number);
    link.setAttribute('href', to);
    link.hidden = !document.querySelector(to);
  });
}
all('.tabs').forEach(group => { group.hidden = false; });
all('[data-tab]').forEach(tab => tab.addEventListener('click', () => choose(tab.dataset.tab)));
if (evaluations) choose('0');

// Tables: a heading sorts, a second time the other way; numbers begin with the largest.
const order = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' });
all('table.classes thead button').forEach(button => button.addEventListener('click', () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest('table').tBodies[0];
  const rows = [...body.rows], numbers = rows.some(row => row.cells[column].dataset.v !== undefined);
  const was = head.getAttribute('aria-sort');
  const down = was === 'none' ? numbers : was === 'ascending';
  const value = row => numbers ? +row.cells[column].dataset.v : row.cells[column].textContent;
  const keyed = rows.map(row => [value(row), row]);
  keyed.sort(([a], [b]) => (numbers ? a - b : order.compare(a, b)) * (down ? -1 : 1));
  body.append(...keyed.map(([, row]) => row));
  all('th', head.parentElement).forEach(th => th.setAttribute('aria-sort', 'none'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
}));
all('[data-filter]').forEach(box => box.addEventListener('input', () => {
  const rows = [...document.getElementById(box.dataset.filter).tBodies[0].rows];
  const wanted = box.value.trim().toLowerCase();
  rows.forEach(row => { row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted); });
  const shown = rows.filter(row => !row.hidden).length;
  box.nextElementSibling.value = (wanted ? shown + ' of ' : '') + rows.length.toLocaleString('en') + (rows.length === 1 ? ' class' : ' classes');
}));

// Confusion: the cell under the pointer, or the one that the arrow keys have come to.
all('.confusion').forEach(box => {
  const { labels, totals, cells, cell } = read(box.dataset.matrix), size = labels.length;
  const svg = box.querySelector('svg'), told = box.querySelector('.told'), counts = new Map();
  for (let i = 0; i < cells.length; i += 3) counts.set(cells[i] * size + cells[i + 1], cells[i + 2]);
  let row = -1, column = -1;
  function show(r, c) {
    if (r < 0 || c < 0 || r >= size || c >= size || (r === row && c === column)) return;
    [row, column] = [r, c];
    for (const [name, x, y] of [['row', 0, r], ['column', c, 0], ['cell', c, r]]) {
      const mark = svg.querySelector('rect.' + name);
      mark.setAttribute('x', x * cell);
      mark.setAttribute('y', y * cell);
      mark.setAttribute('visibility', 'visible');
    }
    const count = counts.get(r * size + c) || 0, total = totals[r], big = document.createElement('b');
    big.textContent = `${count.toLocaleString('en')} of ${total.toLocaleString('en')}`;
    const share = total ? ` (${(100 * count / total).toFixed(1)} %)` : '';
    const rest = r === c ? `clips of “${labels[r]}” are right${share}`
      : `clips of “${labels[r]}” are taken for “${labels[c]}”${share}`;
    told.replaceChildren(big, rest);
  }
  svg.addEventListener('pointermove', event => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(Math.floor(place.y / cell), Math.floor(place.x / cell));
  });
  svg.addEventListener('keydown', event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const within = at => Math.min(size - 1, Math.max(0, at));
    if (row < 0) show(0, 0); else show(within(row + step[0]), within(column + step[1]));
  });
});

// Curves: the values of the epoch under the pointer, or of the one that the arrow keys have come to.
all('[data-lines]').forEach(plot => {
  const lines = Object.entries(JSON.parse(plot.dataset.lines)), unit = plot.dataset.unit;
  const epochs = [...new Map(lines.flatMap(([, points]) => points.map(p => [p[0], p[1]]))).entries()].sort((a, b) => a[0] - b[0]);
  const cursor = Object.assign(document.createElement('i'), { className: 'cursor', hidden: true });
  const tip = Object.assign(document.createElement('div'), { className: 'tip', hidden: true });
  plot.append(cursor, tip);
  let at = -1;
  function show(i) {
    if (!epochs.length) return;
    at = Math.min(epochs.length - 1, Math.max(0, i));
    const [epoch, x] = epochs[at];
    const values = lines.flatMap(([title, points]) => points.filter(p => p[0] === epoch).map(p => `\n${title} ${p[2]}${unit}`));
    tip.textContent = `epoch ${epoch}${values.join('')}`;
    tip.classList.toggle('left', x > 55);
    for (const part of [cursor, tip]) { part.hidden = false; part.style.left = x + '%'; }
  }
  const hide = () => { cursor.hidden = tip.hidden = true; };
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect(), x = 100 * (event.clientX - box.left) / box.width;
    show(epochs.reduce((best, [, place], i) => Math.abs(place - x) < Math.abs(epochs[best][1] - x) ? i : best, 0));
  });
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('blur', hide);
  plot.addEventListener('focus', () => { if (plot.matches(':focus-visible')) show(epochs.length - 1); });
  plot.addEventListener('keydown', event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
});
