/** Lines per second; what is more is counted, not shown. A client's mistakes must not fill a disk. */
const LINES_PER_SECOND = 10;
const SECOND_MS = 1000;

/** Makes a log whose lines are limited in number: a burst's first ones tell what is wrong. */
export function limited(write: (line: string) => void): (line: string) => void {
  let since = 0;
  let lines = 0;
  let dropped = 0;
  return (line) => {
    const now = performance.now();
    if (now - since >= SECOND_MS) {
      if (dropped > 0) write(`${dropped} more lines were left out`);
      since = now;
      lines = 0;
      dropped = 0;
    }
    if (lines++ < LINES_PER_SECOND) write(line);
    else dropped++;
  };
}
