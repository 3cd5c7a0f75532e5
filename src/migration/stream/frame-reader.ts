import {
  checkBody,
  decodeHeader,
  FRAME_HEADER_BYTES,
  type FrameHeader,
  type FrameTypeName,
  frameRefused,
} from "./frame.js";

/** A frame without page data. */
export interface Frame {
  readonly header: FrameHeader;
  readonly body: Uint8Array;
}

/**
 * Cuts a connection's bytes into frames. For connections that carry no page data: the control connection, and what
 * comes back on a channel. Memory use is bounded by one frame's body, whose length the header's check bounds.
 */
export class FrameReader {
  readonly #channel: number;
  readonly #types: readonly FrameTypeName[];
  #sequence = 0;
  readonly #headerBytes = new Uint8Array(FRAME_HEADER_BYTES);
  #header: FrameHeader | undefined;
  #body = new Uint8Array(0);
  /** Bytes of the header, or of the body once the header is whole, that have arrived. */
  #filled = 0;

  /**
   * @param channel the number that each frame must carry
   * @param types what may arrive; not PAGES, whose data is not read here
   */
  constructor(channel: number, types: readonly Exclude<FrameTypeName, "PAGES">[]) {
    this.#channel = channel;
    this.#types = types;
  }

  /** True in the middle of a frame: a connection that ends now was cut off. */
  get midFrame(): boolean {
    return this.#header !== undefined || this.#filled > 0;
  }

  /**
   * Takes the next bytes in and returns the frames that they complete.
   * @throws DirtmapError `FRAME_REFUSED`; the reader is of no use afterwards
   */
  push(bytes: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    for (let at = 0; ; ) {
      const target = this.#header === undefined ? this.#headerBytes : this.#body;
      const taken = Math.min(target.length - this.#filled, bytes.length - at);
      target.set(bytes.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled < target.length) return frames;
      this.#filled = 0;
      if (this.#header === undefined) {
        const header = decodeHeader(this.#headerBytes, { channel: this.#channel, sequence: this.#sequence });
        if (!this.#types.includes(header.type)) throw frameRefused(`a ${header.type} frame is out of place here`);
        this.#header = header;
        this.#body = new Uint8Array(header.bodyBytes);
      } else {
        checkBody(this.#header, this.#body);
        frames.push({ header: this.#header, body: this.#body });
        this.#header = undefined;
        this.#sequence = (this.#sequence + 1) >>> 0;
      }
    }
  }
}
