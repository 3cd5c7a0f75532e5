import { explain } from "../../errors.js";
import { openStore, type Store } from "../../evidence/store/store.js";
import type { StoreOption } from "../input/options/places.js";

/*
 * The store that the operator asked for.
 */

/** Opens it; null: none was wanted. @throws UsageError as `openStore` does */
export function openStoreOf({ store }: StoreOption): Store | null {
  return store === false ? null : openStore(store);
}

/** Checks that it can be used, before anything is started. @throws UsageError as `openStore` does */
export function checkStore(option: StoreOption): void {
  openStoreOf(option)?.[Symbol.dispose]();
}

/**
 * Checks the same for a command that can do without the default store: a note says so then.
 * @returns the option to go on with
 * @throws UsageError as `openStore` does, for a store that was named
 */
export function storeOrNone(option: StoreOption, note: (text: string) => void): StoreOption {
  try {
    checkStore(option);
    return option;
  } catch (error) {
    if (option.store !== undefined) throw error;
    note(`this run will not be kept: ${explain(error)}`);
    return { store: false };
  }
}

/** Keeps a benchmark, and says so. */
export function keepBenchmark(
  option: StoreOption,
  benchmark: Parameters<Store["saveBenchmark"]>[0],
  note: (text: string) => void,
): void {
  using store = openStoreOf(option);
  if (store !== null) note(`kept as benchmark ${store.saveBenchmark(benchmark)} in ${store.path}`);
}
