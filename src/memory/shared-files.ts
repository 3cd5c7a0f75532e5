import type { Arena } from "./arena.js";

/** The part of an arena that a file (a memfd) lies over: another process that gets the descriptor shares it. */
export interface SharedFile {
  readonly fd: number;
  /** Where in the arena the file's first byte is, and how long the file is. */
  readonly offset: number;
  readonly length: number;
}

/** By memory, which several objects may be views of. */
const files = new WeakMap<WebAssembly.Memory, SharedFile>();

/** Says that a file lies over a part of the arena; null: none does any more. One file per arena. */
export function setSharedFile(arena: Arena, file: SharedFile | null): void {
  if (file === null) files.delete(arena.memory);
  else files.set(arena.memory, file);
}

/** The file that holds the whole stretch, and where in it the stretch begins; undefined where it is this process's alone. */
export function sharedFileOf(
  arena: Arena,
  { offset, length }: { offset: number; length: number },
): { readonly fd: number; readonly offset: number } | undefined {
  const file = files.get(arena.memory);
  if (file === undefined || offset < file.offset || offset + length > file.offset + file.length) return undefined;
  return { fd: file.fd, offset: offset - file.offset };
}
