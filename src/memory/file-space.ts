import { addressOf } from "../sys/address.js";
import { mapAnonymousOver, mapFileOver } from "../sys/mmap.js";
import { GiB } from "./address.js";
import { type Arena, createArena } from "./arena.js";

/** Address space that is reserved at a time: an arena of the largest size. Nothing of it is committed. */
const ARENA_BYTES = 4 * GiB;

/** Part of a file that is mapped: `bytes` from `at` in an arena. */
export interface FilePiece {
  readonly arena: Arena;
  readonly at: number;
  readonly bytes: number;
}

/** A free stretch of an arena. */
interface Gap {
  start: number;
  end: number;
}

/** An arena in which files are mapped; `gaps` are sorted and don't touch. */
interface Space {
  readonly arena: Arena;
  /** Of its first byte, in this process. */
  readonly address: number;
  readonly gaps: Gap[];
}

/**
 * Place for files to be mapped where kernels and typed arrays can work on them: arenas, over parts of which a file is
 * laid. A part that is let go has anonymous memory laid over it, so that whoever still has a view of it reads zeroes.
 */
export class FileSpace implements Disposable {
  readonly #spaces: Space[] = [];

  /**
   * Maps [offset, offset + bytes) of a file, in pieces of at most an arena.
   * @param alignment a power of two that the file's mapping must begin and end at: the size of its pages. The file is
   * mapped from the multiple below `offset` to the one above the end; what is returned is what was asked for.
   * @throws UapiError with mmap's errno; UsageError `MEMORY_DOES_NOT_FIT` where there is no address space left. Then
   * nothing is mapped.
   */
  map(fd: number, offset: number, bytes: number, alignment: number): FilePiece[] {
    const pieces: FilePiece[] = [];
    const end = offset + bytes;
    try {
      for (let at = offset; at < end; ) {
        const from = at - (at % alignment);
        const to = Math.min(end, from + ARENA_BYTES - 2 * alignment);
        const length = Math.ceil((to - from) / alignment) * alignment;
        const { arena, start } = this.#take(length, alignment);
        const view = arena.u8.subarray(start, start + length);
        try {
          mapFileOver(view, fd, from);
        } catch (error) {
          // Nothing was mapped: the place is as it was.
          this.#give(arena, start, length);
          throw error;
        }
        pieces.push({ arena, at: start + at - from, bytes: to - at });
        at = to;
      }
      return pieces;
    } catch (error) {
      this.unmap(pieces, alignment);
      throw error;
    }
  }

  /** Lets go of what {@link map} has returned; with the same alignment. */
  unmap(pieces: readonly FilePiece[], alignment: number): void {
    for (const { arena, at, bytes } of pieces) {
      const space = this.#spaces.find((candidate) => candidate.arena === arena);
      if (space === undefined) continue;
      const address = space.address + at;
      const start = address - (address % alignment) - space.address;
      const length = Math.ceil((at + bytes - start) / alignment) * alignment;
      mapAnonymousOver(arena.u8.subarray(start, start + length));
      this.#give(arena, start, length);
    }
  }

  /** Lets go of everything, also of the address space. */
  [Symbol.dispose](): void {
    for (const { arena, gaps } of this.#spaces) {
      if (gaps.length !== 1 || gaps[0].end - gaps[0].start !== arena.bytes) mapAnonymousOver(arena.u8);
    }
    this.#spaces.length = 0;
  }

  /** First fit, at an address that is a multiple of `alignment`. */
  #take(length: number, alignment: number): { arena: Arena; start: number } {
    for (const space of this.#spaces) {
      for (const [index, gap] of space.gaps.entries()) {
        const start = Math.ceil((space.address + gap.start) / alignment) * alignment - space.address;
        if (start + length > gap.end) continue;
        const rest = [
          { start: gap.start, end: start },
          { start: start + length, end: gap.end },
        ].filter((part) => part.end > part.start);
        space.gaps.splice(index, 1, ...rest);
        return { arena: space.arena, start };
      }
    }
    const arena = createArena(ARENA_BYTES);
    this.#spaces.push({ arena, address: Number(addressOf(arena.u8)), gaps: [{ start: 0, end: arena.bytes }] });
    return this.#take(length, alignment);
  }

  #give(arena: Arena, start: number, length: number): void {
    const gaps = this.#spaces.find((space) => space.arena === arena)?.gaps;
    if (gaps === undefined) return;
    const end = start + length;
    let index = gaps.findIndex((gap) => gap.start >= end);
    if (index < 0) index = gaps.length;
    const before = gaps[index - 1];
    const after = gaps[index];
    if (before?.end === start && after?.start === end) {
      before.end = after.end;
      gaps.splice(index, 1);
    } else if (before?.end === start) before.end = end;
    else if (after?.start === end) after.start = start;
    else gaps.splice(index, 0, { start, end });
  }
}
