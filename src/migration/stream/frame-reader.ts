import {
  checkBody,
  checkOpening,
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
  readonly #firstBody: number;
  #sequence = 0;
  readonly #headerBytes = new Uint8Array(FRAME_HEADER_BYTES);
  #header: FrameHeader | undefined;
  #body = new Uint8Array(0);
  /** Bytes of the header, or of the body once the header is whole, that have arrived. */
  #filled = 0;

  /**
   * @param channel the number that each frame must carry
   * @param types what may arrive; not PAGES, whose data is not read here
   * @param firstBody the longest body that the first frame may have
   */
  constructor(
    channel: number,
    types: readonly Exclude<FrameTypeName, "PAGES">[],
    firstBody: number = Number.POSITIVE_INFINITY,
  ) {
    this.#channel = channel;
    this.#types = types;
    this.#firstBody = firstBody;
  }

  /** True in the middle of a frame: a connection that ends now was cut off. */
  get midFrame(): boolean {
    return this.#header !== undefined || this.#filled > 0;
  }

  /**
   * Takes the next bytes in and yields the frames that they complete. Frames that were whole before damage are yielded
   * before it throws.
   * @throws DirtmapError `FRAME_REFUSED`, `INCOMPATIBLE`; the reader is of no use afterwards
   */
  *push(bytes: Uint8Array): Generator<Frame, void> {
    for (let at = 0; ; ) {
      const target = this.#header === undefined ? this.#headerBytes : this.#body;
      const taken = Math.min(target.length - this.#filled, bytes.length - at);
      target.set(bytes.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#sequence === 0 && this.#header === undefined) checkOpening(this.#headerBytes.subarray(0, this.#filled));
      if (this.#filled < target.length) return;
      this.#filled = 0;
      if (this.#header === undefined) {
        const header = decodeHeader(this.#headerBytes, { channel: this.#channel, sequence: this.#sequence });
        if (!this.#types.includes(header.type)) throw frameRefused(`a ${header.type} frame is out of place here`);
        if (this.#sequence === 0 && header.bodyBytes > this.#firstBody) {
          throw frameRefused(`a first frame of ${header.bodyBytes} bytes`);
        }
        this.#header = header;
        this.#body = new Uint8Array(header.bodyBytes);
      } else {
        checkBody(this.#header, this.#body);
        const frame = { header: this.#header, body: this.#body };
        this.#header = undefined;
        this.#sequence = (this.#sequence + 1) >>> 0;
        yield frame;
      }
    }
  }
}
