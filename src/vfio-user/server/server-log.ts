/** Lines per second of one client, and of all together: what clients do wrong must not fill a disk. */
export const LINES_OF_CLIENT = 10;
export const LINES_OF_ALL = 100;
/** Lines per second about the device itself: apart from the others, so that what clients do wrong never drowns them. */
export const LINES_OF_DEVICE = 10;

const SECOND_MS = 1000;

/** Makes a log whose lines are limited in number: a burst's first ones tell what is wrong, what is more is counted. */
export function limited(write: (line: string) => void, linesPerSecond: number): (line: string) => void {
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
    if (lines++ < linesPerSecond) write(line);
    else dropped++;
  };
}
