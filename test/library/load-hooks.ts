import type { InitializeHook, LoadHook, ResolveHook } from "node:module";
import type { MessagePort } from "node:worker_threads";

/*
 * Loader hooks that tell of each module that is loaded, and refuse packages as if they weren't installed.
 */

export interface HookData {
  readonly loaded: MessagePort;
  /** Names of packages that can't be found; `*`: every one but Dirtmap. */
  readonly without: readonly string[];
}

let data: HookData;

export const initialize: InitializeHook<HookData> = (given) => {
  data = given;
};

export const resolve: ResolveHook = async (specifier, context, next) => {
  const isPackage =
    /^[@a-z]/.test(specifier) && !/^(node|file|data):/.test(specifier) && !/^dirtmap(\/|$)/.test(specifier);
  if (isPackage && data.without.some((name) => name === "*" || name === specifier)) {
    throw Object.assign(new Error(`Cannot find package '${specifier}'`), { code: "ERR_MODULE_NOT_FOUND" });
  }
  return await next(specifier, context);
};

export const load: LoadHook = async (url, context, next) => {
  data.loaded.postMessage(url);
  return await next(url, context);
};
