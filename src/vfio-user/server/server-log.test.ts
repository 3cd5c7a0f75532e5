import { describe, expect, it, vi } from "vitest";
import { limited } from "./server-log.js";

describe("a server's log", () => {
  it("has the first lines of a burst, and says how many it left out", () => {
    vi.useFakeTimers({ toFake: ["performance"], now: 5000 });
    try {
      const lines: string[] = [];
      const log = limited((line) => lines.push(line), 2);
      for (let i = 0; i < 5; i++) log(`a${i}`);
      expect(lines).toEqual(["a0", "a1"]);
      vi.advanceTimersByTime(1000);
      log("b");
      expect(lines).toEqual(["a0", "a1", "3 more lines were left out", "b"]);
    } finally {
      vi.useRealTimers();
    }
  });
});
