"""From files to batches: annotations, sampling, decoding, transforms, the generated benchmark."""
