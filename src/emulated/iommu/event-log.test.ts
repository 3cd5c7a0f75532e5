import { describe, expect, it } from "vitest";
import { EventLog } from "./event-log.js";

describe("the event log", () => {
  it("gives events back in order, each once, through its whole ring", () => {
    const log = EventLog.allocate(8);
    const device = new EventLog(log.words);
    let next = 0;
    for (let round = 0; round < 10; round++) {
      for (let i = 0; i < 5; i++) device.append(i, 2 ** 35 + next + i, i % 2 === 0, "not-mapped");
      expect(log.take()).toEqual(
        Array.from({ length: 5 }, (_, i) => ({
          port: i,
          page: 2 ** 35 + next + i,
          write: i % 2 === 0,
          reason: "not-mapped",
        })),
      );
      next += 5;
    }
    expect(log.take()).toEqual([]);
    expect(log.dropped).toBe(0);
  });

  it("drops what finds it full, counts it, and goes on when it was emptied", () => {
    const log = EventLog.allocate(4);
    for (let page = 0; page < 7; page++) log.append(1, page, true, "detached");
    expect(log.dropped).toBe(3);
    expect(log.take().map(({ page }) => page)).toEqual([0, 1, 2, 3]);
    log.append(1, 9, false, "p2p-refused");
    expect(log.take()).toEqual([{ port: 1, page: 9, write: false, reason: "p2p-refused" }]);
  });
});
