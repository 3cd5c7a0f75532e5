const CONTROL = ".control";

/** Where those who control a device connect: beside its socket. Of a control socket, itself. */
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
