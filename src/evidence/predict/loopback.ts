import { randomBytes } from "node:crypto";
import { RamBitmap } from "../../bitmap/ram-bitmap.js";
import { DirtmapError } from "../../errors.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { fillMemory } from "../../memory/fill.js";
import { createGuestMemory } from "../../memory/guest-memory.js";
import { openSender } from "../../migration/channels/sender.js";
import { STOP_MS } from "../../migration/convergence.js";
import type { SentRound } from "../../migration/data-plane.js";
import { listen } from "../../migration/transport/listener.js";
import { summarize } from "../statistics.js";
import type { LinkEstimate } from "./link.js";

/** Enough to measure speed; on an idle machine it is sent in less than a tenth of a second. */
const PROBE_BYTES = 64 * MiB;
/** Rounds of one page: what is measured is how long threads take to answer each other, on the machine as it is now. */
const SMALL_ROUNDS = 9;
/**
 * A stop is a chain of requests to threads, messages to the destination and journal writes, and so is the pause between two
 * rounds. Measured with a small round at 16 to 21 ms (a machine with two cores and thirty processes that wanted them): a stop
 * took 36 to 45 times as long, a pause 13 times; on an idle machine a stop takes 30 ms.
 */
const STOP_ROUNDS = 40;
const BETWEEN_ROUNDS = 13;

/** Nothing on loopback takes longer, on a machine that could migrate anything. */
const LIMIT_MS = 30_000;

/**
 * Measures the speed at which this machine sends pages to itself, over the same channels as a migration. It sends 64 MiB of random
 * pages twice, because only the first time touches new memory of the receiver. Then it sends single pages, to time an answer. A
 * network in between can only be slower.
 * @param channels 1 to 16
 * @throws DirtmapError `LOOPBACK_TOO_SLOW`, and those of the channels; the signal's reason
 */
export async function measureLoopback({
  channels,
  signal,
}: {
  channels: number;
  signal: AbortSignal;
}): Promise<LinkEstimate> {
  const late = AbortSignal.any([signal, AbortSignal.timeout(LIMIT_MS)]);
  try {
    return await measured(channels, late);
  } catch (cause) {
    if (!late.aborted || signal.aborted) throw cause;
    throw new DirtmapError(`sending 64 MiB to this machine itself took more than ${LIMIT_MS / 1000} s`, {
      code: "LOOPBACK_TOO_SLOW",
      remedy: "foretell a migration when the machine is less busy, or give reports of earlier ones (--run)",
      cause,
    });
  }
}

async function measured(channels: number, late: AbortSignal): Promise<LinkEstimate> {
  const source = createGuestMemory(PROBE_BYTES);
  fillMemory(source, 1, 1);
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const token = randomBytes(32).toString("hex");
  // Loaded here, because it alone calls the system: who predicts from reports needs no koffi.
  const { openReceiver } = await import("../../migration/channels/receiver.js");
  await using receiver = openReceiver({ memory: createGuestMemory(PROBE_BYTES), listener, channels, token });
  const address = { host: "127.0.0.1", port: listener.endpoint.port, token };
  await using sender = await openSender({ memory: source, address, channels, signal: late });
  const pages = new RamBitmap(source);
  pages.setAll();
  let rounds = 0;
  const send = async (bitmap: RamBitmap) => {
    await receiver.beginRound(rounds);
    return await sender.sendRound(rounds++, bitmap, late);
  };
  const first = await send(pages);
  const second = await send(pages);
  const one = new RamBitmap(source);
  one.addPages(pages.memory.regions[0].firstPage, 1);
  const small: number[] = [];
  for (let n = 0; n < SMALL_ROUNDS; n++) small.push((await send(one)).ms);
  const { median } = summarize(small);
  return {
    source: "loopback",
    betweenMs: BETWEEN_ROUNDS * median,
    stopMs: Math.max(STOP_MS, STOP_ROUNDS * median),
    firstBytesPerSecond: speedOf(first),
    bytesPerSecond: speedOf(second),
  };
}

function speedOf({ pages, zeroPages, ms }: SentRound): number {
  return (((pages - zeroPages) * PAGE_SIZE) / Math.max(ms, 0.001)) * 1000;
}
