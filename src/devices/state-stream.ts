import { checksumWords } from "./checksum.js";
import {
  badState,
  decodeRecords,
  encodeRecord,
  RECORD_HEADER_BYTES,
  type RecordHeader,
  readRecordHeader,
  writeRecordHeader,
} from "./records.js";

/*
 * A device's state as a stream of records, with pre-copy: first whole, then, as often as asked, the blocks of the image
 * that changed since. Opaque to whoever carries it.
 *
 *   IDENTITY   model, state version: comes first, so that a device refuses early what it can't load
 *   IMAGE      a new image begins: its length (u64); all of it is zero. Again where its layout has changed
 *   LENGTH     the image has grown to this length (u64); what is new is zero
 *   BLOCKS     changed blocks: each a u32 block number and the block's bytes (the last block of an image may be shorter)
 *   STOP_COPY_SIZE  optional; bytes that stop-copy is expected to need (u64), as mlx5 sends it
 *   END        checksum of the image's blocks' checksums (u32): nothing is missing
 *
 * Images are made of records. The last one may grow, as memory is used for the first time; where anything before it
 * changes its size, the layout has changed.
 */
const TAG = { BLOCKS: 0, STOP_COPY_SIZE: 1, IDENTITY: 2, IMAGE: 3, END: 4, LENGTH: 5 } as const;

const BLOCK = 4096;
const BLOCK_RECORD = 4 + BLOCK;
/** Blocks per BLOCKS record: keeps what a reader must hold at once under 300 KiB. */
const BLOCKS_PER_RECORD = 64;
const MAX_RECORD = BLOCKS_PER_RECORD * BLOCK_RECORD;

/** What a stream says of the device it is of. */
export interface StateIdentity {
  readonly model: string;
  readonly stateVersion: number;
}

const ZERO_BLOCK = new Uint8Array(BLOCK);

/** Makes the stream: a series of images in, bytes to send out. */
export class StateEncoder {
  readonly #identity: StateIdentity;
  #sent: Uint8Array | undefined;
  #sums = new BlockSums(0);

  constructor(identity: StateIdentity) {
    this.#identity = identity;
  }

  /** True once an image was sent and `image` does not continue it: a reader will meet new initial data. */
  restartsWith(image: Uint8Array): boolean {
    return this.#sent !== undefined && this.#fresh(image);
  }

  /** Bytes that {@link encode} would return. */
  sizeOf(image: Uint8Array): number {
    return this.#sizeOf(image, this.#changed(image));
  }

  /** What turns the images sent so far into `image`; empty where nothing changed. Keeps `image`. */
  encode(image: Uint8Array): Uint8Array {
    const blocks = this.#changed(image);
    const bytes = new Uint8Array(this.#sizeOf(image, blocks));
    const view = new DataView(bytes.buffer);
    let at = 0;
    if (this.#sent === undefined) {
      const identity = this.#identityRecord();
      bytes.set(identity);
      at = identity.byteLength;
    }
    const fresh = this.#fresh(image);
    if (fresh || this.#grows(image)) {
      writeRecordHeader(view, at, { tag: fresh ? TAG.IMAGE : TAG.LENGTH, optional: false, size: 8 });
      view.setBigUint64(at + RECORD_HEADER_BYTES, BigInt(image.byteLength), true);
      at += RECORD_HEADER_BYTES + 8;
      this.#sums = new BlockSums(image.byteLength, fresh ? undefined : this.#sums);
    }
    for (let done = 0; done < blocks.length; done += BLOCKS_PER_RECORD) {
      const header = at;
      at += RECORD_HEADER_BYTES;
      for (const block of blocks.slice(done, done + BLOCKS_PER_RECORD)) {
        const data = blockOf(image, block);
        view.setUint32(at, block, true);
        bytes.set(data, at + 4);
        at += 4 + data.byteLength;
        this.#sums.update(image, block);
      }
      writeRecordHeader(view, header, { tag: TAG.BLOCKS, optional: false, size: at - header - RECORD_HEADER_BYTES });
    }
    this.#sent = image;
    return bytes;
  }

  /** Announces what stop-copy will need; a destination may make room. */
  encodeStopCopySize(bytes: number): Uint8Array {
    const data = new Uint8Array(8);
    new DataView(data.buffer).setBigUint64(0, BigInt(bytes), true);
    return encodeRecord({ tag: TAG.STOP_COPY_SIZE, optional: true, data });
  }

  /** Bytes that {@link end} returns. */
  readonly endBytes = RECORD_HEADER_BYTES + 4;

  /** Ends the stream: the image sent last is the state. */
  end(): Uint8Array {
    const data = new Uint8Array(4);
    new DataView(data.buffer).setInt32(0, this.#sums.total, true);
    return encodeRecord({ tag: TAG.END, optional: false, data });
  }

  #sizeOf(image: Uint8Array, blocks: readonly number[]): number {
    const records = Math.ceil(blocks.length / BLOCKS_PER_RECORD);
    const last = image.byteLength % BLOCK;
    const short = last !== 0 && blocks.at(-1) === Math.floor(image.byteLength / BLOCK) ? BLOCK - last : 0;
    const identity = this.#sent === undefined ? this.#identityRecord().byteLength : 0;
    const begin = this.#fresh(image) || this.#grows(image) ? RECORD_HEADER_BYTES + 8 : 0;
    return identity + begin + records * RECORD_HEADER_BYTES + blocks.length * BLOCK_RECORD - short;
  }

  #fresh(image: Uint8Array): boolean {
    const sent = this.#sent;
    if (sent === undefined || image.byteLength < sent.byteLength) return true;
    return image.byteLength > sent.byteLength && lastRecordAt(image) !== lastRecordAt(sent);
  }

  #grows(image: Uint8Array): boolean {
    return this.#sent?.byteLength !== image.byteLength;
  }

  #changed(image: Uint8Array): number[] {
    const sent = this.#fresh(image) ? undefined : this.#sent;
    const blocks: number[] = [];
    for (let block = 0; block * BLOCK < image.byteLength; block++) {
      const now = blockOf(image, block);
      const before = sent === undefined ? ZERO_BLOCK.subarray(0, now.byteLength) : blockOf(sent, block);
      if (now.byteLength !== before.byteLength || Buffer.compare(now, before) !== 0) blocks.push(block);
    }
    return blocks;
  }

  #identityRecord(): Uint8Array {
    const { model, stateVersion } = this.#identity;
    return encodeRecord({
      tag: TAG.IDENTITY,
      optional: false,
      data: new TextEncoder().encode(JSON.stringify({ model, stateVersion })),
    });
  }
}

/** Takes the stream back in, in pieces of any size. */
export class StateDecoder {
  readonly #identity: StateIdentity;
  readonly #maxImage: number;
  #image: Uint8Array<ArrayBuffer> | undefined;
  #sums = new BlockSums(0);
  /** The record that is coming in, of which `#held` bytes are there. Grows to the largest record. */
  #record = new Uint8Array(RECORD_HEADER_BYTES);
  #held = 0;
  #identified = false;
  #ended = false;

  /** @param maxImage bytes of the largest image that this device can have: more is refused before it is allocated */
  constructor(identity: StateIdentity, maxImage: number) {
    this.#identity = identity;
    this.#maxImage = maxImage;
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE` as soon as it is clear that the data can't be right */
  write(data: Uint8Array): void {
    for (let at = 0; at < data.byteLength; ) {
      const wanted = this.#wanted();
      const taken = Math.min(wanted - this.#held, data.byteLength - at);
      if (this.#record.byteLength < wanted) this.#makeRoom(wanted);
      this.#record.set(data.subarray(at, at + taken), this.#held);
      this.#held += taken;
      at += taken;
      if (this.#held === this.#wanted()) this.#endRecord();
    }
  }

  /**
   * The stream is over. Returns the image.
   * @throws DirtmapError `BAD_DEVICE_STATE` where it is incomplete
   */
  finish(): Uint8Array<ArrayBuffer> {
    if (this.#held > 0) throw badState("the stream ends inside a record");
    if (!this.#ended || this.#image === undefined) throw badState("the stream ends early");
    return this.#image;
  }

  /** Bytes that the record has, as far as is known: its header first. */
  #wanted(): number {
    if (this.#held < RECORD_HEADER_BYTES) return RECORD_HEADER_BYTES;
    return RECORD_HEADER_BYTES + readRecordHeader(viewOf(this.#record), 0, MAX_RECORD).size;
  }

  #makeRoom(bytes: number): void {
    const record = new Uint8Array(bytes);
    record.set(this.#record.subarray(0, this.#held));
    this.#record = record;
  }

  #endRecord(): void {
    const header = readRecordHeader(viewOf(this.#record), 0, MAX_RECORD);
    this.#take(header, this.#record.subarray(RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + header.size));
    this.#held = 0;
  }

  #take({ tag, optional }: RecordHeader, data: Uint8Array): void {
    if (this.#ended) throw badState("there is data behind the end");
    if (!this.#identified && tag !== TAG.IDENTITY)
      throw badState("the stream doesn't begin with the device's identity");
    switch (tag) {
      case TAG.IDENTITY:
        this.#identify(data);
        return;
      case TAG.IMAGE:
        this.#image = new Uint8Array(this.#checkedLength(data));
        this.#sums = new BlockSums(this.#image.byteLength);
        return;
      case TAG.LENGTH:
        this.#grow(this.#checkedLength(data));
        return;
      case TAG.BLOCKS:
        this.#blocks(data);
        return;
      case TAG.END:
        if (this.#image === undefined || data.byteLength !== 4) throw badState("a malformed end");
        if (viewOf(data).getInt32(0, true) !== this.#sums.total) throw badState("its checksum is wrong");
        this.#ended = true;
        return;
      default:
        if (!optional) throw badState(`a record with unknown tag ${tag}`);
    }
  }

  #grow(length: number): void {
    const old = this.#image;
    if (old === undefined || length < old.byteLength) throw badState("an image that shrinks");
    const image = new Uint8Array(length);
    image.set(old);
    this.#image = image;
    this.#sums = new BlockSums(length, this.#sums);
  }

  #identify(data: Uint8Array): void {
    const { model, stateVersion } = this.#identity;
    if (new TextDecoder().decode(data) !== JSON.stringify({ model, stateVersion })) {
      const found = new TextDecoder().decode(data.subarray(0, 80)).replaceAll(/[^ -~]/g, "?");
      throw badState(`it is of ${found}, this device is a ${model} with state version ${stateVersion}`);
    }
    this.#identified = true;
  }

  #checkedLength(data: Uint8Array): number {
    if (data.byteLength !== 8) throw badState("a malformed image record");
    const length = viewOf(data).getBigUint64(0, true);
    if (length % 4n !== 0n) throw badState(`an image of ${length} bytes: images are whole words`);
    if (length > BigInt(this.#maxImage)) {
      throw badState(`an image of ${length} bytes, where this device has at most ${this.#maxImage}`);
    }
    return Number(length);
  }

  #blocks(data: Uint8Array): void {
    const image = this.#image;
    if (image === undefined) throw badState("blocks before an image");
    const view = viewOf(data);
    for (let at = 0; at < data.byteLength; ) {
      if (data.byteLength - at < 4) throw badState("a malformed block");
      const block = view.getUint32(at, true);
      const from = block * BLOCK;
      const bytes = Math.min(BLOCK, image.byteLength - from);
      if (bytes <= 0 || data.byteLength - at - 4 < bytes) throw badState("a block outside the image");
      image.set(data.subarray(at + 4, at + 4 + bytes), from);
      this.#sums.update(image, block);
      at += 4 + bytes;
    }
  }
}

/** Where an image's last record begins. */
function lastRecordAt(image: Uint8Array): number {
  return image.byteLength - RECORD_HEADER_BYTES - (decodeRecords(image).at(-1)?.data.byteLength ?? 0);
}

function blockOf(image: Uint8Array, block: number): Uint8Array {
  return image.subarray(block * BLOCK, (block + 1) * BLOCK);
}

function viewOf(data: Uint8Array): DataView {
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}

/** A checksum per block of an image, so that an image's checksum costs only what changed in it. */
class BlockSums {
  readonly #sums: Int32Array;

  /** Of an image that is zero but for what it had before it grew. A last block that was short is to be updated. */
  constructor(imageBytes: number, before?: BlockSums) {
    const whole = Math.floor(imageBytes / BLOCK);
    this.#sums = new Int32Array(Math.ceil(imageBytes / BLOCK)).fill(ZERO_SUM, 0, whole);
    if (whole < this.#sums.length) this.#sums[whole] = checksumWords(ZERO_WORDS, (imageBytes - whole * BLOCK) / 4);
    if (before !== undefined) this.#sums.set(before.#sums);
  }

  /** A block has changed. Images are whole words and own their buffers. */
  update(image: Uint8Array, block: number): void {
    const from = block * BLOCK;
    const words = Math.min(BLOCK, image.byteLength - from) / 4;
    this.#sums[block] = checksumWords(new Int32Array(image.buffer, image.byteOffset + from, words), words);
  }

  get total(): number {
    return checksumWords(this.#sums, this.#sums.length);
  }
}

const ZERO_WORDS = new Int32Array(BLOCK / 4);
const ZERO_SUM = checksumWords(ZERO_WORDS, ZERO_WORDS.length);
