import { DirtmapError } from "../errors.js";

/** What a thread has promised, or an error where it takes longer. @throws DirtmapError `THREAD_TIMEOUT` */
export async function within<T>(promise: Promise<T>, limitMs: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new DirtmapError(`${what} was not answered within ${limitMs} ms`, { code: "THREAD_TIMEOUT" }));
    }, limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
