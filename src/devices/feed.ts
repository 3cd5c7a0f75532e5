/*
 * How a NIC's rate is reached with real datagrams. A socket of Node takes in some ten thousand datagrams a second before
 * it costs a core; a NIC's rate may need more. So the feeder sends at most a few thousand, and the NIC delivers each to
 * as many receive buffers as the rate needs, like a multicast frame that several queues subscribe to.
 */

export const MIN_DATAGRAM = 256;
export const MAX_DATAGRAM = 8192;

const MEAN_DATAGRAM = (MIN_DATAGRAM + MAX_DATAGRAM) / 2;
const MAX_DATAGRAMS_PER_SECOND = 2500;

/** More is sent than the NIC may write, so that its own pacing decides and not the sender's timer. */
const SURPLUS = 1.15;

export interface FeedPlan {
  readonly datagramsPerSecond: number;
  /** Receive buffers that each datagram is written to. */
  readonly copies: number;
}

/** @param rate megabytes (10^6) per second that the NIC shall write */
export function feedPlan(rate: number): FeedPlan {
  const datagrams = (rate * 1e6) / MEAN_DATAGRAM;
  const copies = Math.max(1, Math.ceil(datagrams / MAX_DATAGRAMS_PER_SECOND));
  return { datagramsPerSecond: Math.ceil((datagrams / copies) * SURPLUS), copies };
}
