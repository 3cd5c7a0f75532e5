const CONTROL = ".control";

/** Returns the path of the control socket that belongs to a device's socket. A control socket's path is returned unchanged. */
export function controlPath(path: string): string {
  return isControlPath(path) ? path : `${path}${CONTROL}`;
}

/** True for the path of a control socket. */
export function isControlPath(path: string): boolean {
  return path.endsWith(CONTROL);
}

/** The path of the device's own socket. Of that, itself. */
export function devicePath(path: string): string {
  return isControlPath(path) ? path.slice(0, -CONTROL.length) : path;
}
