/*
 * What a fuzzed server is told, as plain data: a run is a list of these, which can be printed, shortened and done again.
 */

/** Descriptors that a client may send: memory, and what is none. */
export const DESCRIPTORS = [
  "memfd",
  "memfd-2",
  "memfd-to-read",
  "large-memfd",
  "file",
  "file-to-read",
  "short-file",
  "empty-file",
  "fifo",
  "socket",
  "eventfd",
  "full-eventfd",
  "directory",
  "null-device",
] as const;
export type DescriptorName = (typeof DESCRIPTORS)[number];

/** The device's one client is at 0; those who control it are behind. */
export type Slot = number;
export const MAIN: Slot = 0;
export const SLOTS = 4;

/** How a client answers a DMA_READ or DMA_WRITE of the server's. */
export type DmaAnswer = "right" | "refused" | "wrong-count" | "wrong-id" | "wrong-command" | "hangs-up";

export type Operation =
  | { readonly kind: "connect"; readonly on: Slot }
  | { readonly kind: "disconnect"; readonly on: Slot }
  /** A second client, while there is one. */
  | { readonly kind: "intrude" }
  | {
      readonly kind: "message";
      readonly on: Slot;
      readonly command: number;
      /** Of the header: type, No_reply, Error, and bits that mean nothing. */
      readonly flags: number;
      readonly payload: Uint8Array;
      readonly descriptors: readonly DescriptorName[];
      /** Bytes, header included, after which the write is broken off and begun anew. */
      readonly cuts: readonly number[];
      /** What the header says of the size, where that is not the truth. */
      readonly size?: number;
      /** The next operation waits for the answer. */
      readonly waits: boolean;
    }
  /** The first bytes of a message, and the end of the connection. */
  | {
      readonly kind: "break-off";
      readonly on: Slot;
      readonly bytes: Uint8Array;
      readonly descriptors: readonly DescriptorName[];
    }
  /** What the guest's driver puts into memory for the device, where the device may write: commands, for instance. */
  | { readonly kind: "fill"; readonly file: DescriptorName; readonly offset: number; readonly bytes: Uint8Array }
  /** From now on. */
  | { readonly kind: "answer-dma"; readonly how: DmaAnswer };

export type MessageOperation = Operation & { kind: "message" };

/** A run as text, one operation a line. */
export function operationsToText(operations: readonly object[]): string {
  return operations
    .map((operation) =>
      JSON.stringify(operation, (_key, value) =>
        value instanceof Uint8Array ? { hex: Buffer.from(value).toString("hex") } : value,
      ),
    )
    .join("\n");
}

/** The reverse. @throws SyntaxError */
export function operationsFromText<Of = Operation>(text: string): Of[] {
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) =>
      JSON.parse(line, (_key, value) =>
        typeof value?.hex === "string" ? new Uint8Array(Buffer.from(value.hex, "hex")) : value,
      ),
    );
}
