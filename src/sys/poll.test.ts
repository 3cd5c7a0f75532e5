import { expect, it } from "vitest";
import { EventFd } from "./eventfd.js";
import { POLLIN, POLLNVAL, PollSet } from "./poll.js";

it.runIf(process.platform === "linux")("a wait ends when an eventfd is signalled, and says which", async () => {
  using quiet = EventFd.create();
  using loud = EventFd.create();
  const set = new PollSet([
    { fd: quiet.fd, events: POLLIN },
    { fd: loud.fd, events: POLLIN },
  ]);
  expect(set.wait(0)).toBe(0);
  const waiting = set.waitOnThread(10_000);
  loud.signal();
  loud.signal();
  expect(await waiting).toBe(1);
  expect([set.events(0), set.events(1)]).toEqual([0, POLLIN]);
  expect(loud.take()).toBe(2n);
  expect(loud.take()).toBe(0n);
  expect(set.wait(0)).toBe(0);
});

it.runIf(process.platform === "linux")("a closed descriptor is told, and one below 0 left out", () => {
  const gone = EventFd.create();
  gone[Symbol.dispose]();
  gone[Symbol.dispose]();
  const set = new PollSet([
    { fd: gone.fd, events: POLLIN },
    { fd: -1, events: POLLIN },
  ]);
  expect(set.wait(0)).toBe(1);
  expect([set.events(0), set.events(1)]).toEqual([POLLNVAL, 0]);
});
