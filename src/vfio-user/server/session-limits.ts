import { MAX_TRANSFER } from "./region-access.js";

/*
 * What a client's connection may take, of a server and of a proxy alike.
 */

/** Of a command's payload: what is transferred, and what is before it. */
export const MAX_PAYLOAD = MAX_TRANSFER + 4096;

/** Messages that are answered before the device and other clients have their turn again. */
export const MAX_PER_TURN = 64;

/** Commands that may wait for one that takes longer, or for the client's answer to a DMA. */
export const MAX_HELD = 1024;

/** How long a client may be connected without having agreed on the version. */
export const VERSION_LIMIT_MS = 10_000;

/**
 * A client that waits for the answer to a command before it serves DMA, as QEMU's main loop does while a vCPU waits, and a
 * command that can't be answered during DMA: after this long the DMA is given up. Less than what QEMU waits (5 s).
 */
export const HELD_LIMIT_MS = 2000;
