"""Long and live video: windows slid over it, their scores on a timeline."""
