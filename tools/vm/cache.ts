import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";

/** Where what was made for the virtual machines is kept, as the XDG Base Directory Specification says. */
export function cacheFolder(): string {
  const { XDG_CACHE_HOME } = process.env;
  // A relative path is invalid by that specification, and to be ignored.
  const base = XDG_CACHE_HOME && isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : join(homedir(), ".cache");
  return join(base, "dirtmap");
}
