import { DirtmapError } from "../errors.js";
import type { ControlMessageOf } from "./stream/messages.js";

/**
 * The rounds as the control connection tells of them, at the destination: from 0 on, each begun and ended before the next
 * begins, with as many pages as it began with. The first round of stop-copy is the last of all.
 */
export class RoundSequence {
  #begun: ControlMessageOf<"ROUND_BEGIN"> | undefined;
  #ended: ControlMessageOf<"ROUND_BEGIN"> | undefined;

  /** @throws DirtmapError `UNEXPECTED_MESSAGE` */
  begin(message: ControlMessageOf<"ROUND_BEGIN">): void {
    if (this.#begun !== undefined) throw unexpected(`round ${message.round} begins in round ${this.#begun.round}`);
    const due = this.#ended === undefined ? 0 : this.#ended.round + 1;
    if (message.round !== due) throw unexpected(`round ${message.round} begins where round ${due} is due`);
    if (this.#ended?.phase === "stop-copy") throw unexpected(`round ${message.round} follows the last one`);
    this.#begun = message;
  }

  /** @throws DirtmapError `UNEXPECTED_MESSAGE` */
  end({ round, pages }: ControlMessageOf<"ROUND_END">): void {
    const begun = this.#begun;
    if (begun?.round !== round) throw unexpected(`round ${round} ends, and ${begun?.round ?? "none"} is open`);
    if (begun.pages !== pages)
      throw unexpected(`round ${round} began with ${begun.pages} pages and ends with ${pages}`);
    this.#begun = undefined;
    this.#ended = begun;
  }

  /** PREPARE: all pages that were written are there. @throws DirtmapError `UNEXPECTED_MESSAGE` */
  finish(round: number): void {
    if (this.#begun !== undefined) throw unexpected(`PREPARE arrived in round ${this.#begun.round}`);
    if (this.#ended?.round !== round) {
      throw unexpected(`round ${round} is to be the last, and ${this.#ended?.round ?? "none"} was`);
    }
    if (this.#ended.phase !== "stop-copy") throw unexpected(`round ${round} was of pre-copy: the machine still ran`);
  }
}

/** The error for a message about a round that is out of turn. */
export function unexpected(what: string): DirtmapError {
  return new DirtmapError(what, { code: "UNEXPECTED_MESSAGE", remedy: "use the same version on both sides" });
}
