import { describe, expect, it } from "vitest";
import { RwLock } from "./rw-lock.js";

const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("RwLock", () => {
  it("lets readers in together, a writer alone, and everyone in the order of arrival", async () => {
    const lock = new RwLock();
    const log: string[] = [];
    const work = (name: string) => async () => {
      log.push(`+${name}`);
      await turn();
      log.push(`-${name}`);
    };
    await Promise.all([lock.read(work("a")), lock.read(work("b")), lock.write(work("C")), lock.read(work("d"))]);
    expect(log).toEqual(["+a", "+b", "-a", "-b", "+C", "-C", "+d", "-d"]);
  });

  it("is let go of by work that fails", async () => {
    const lock = new RwLock();
    await expect(lock.write(() => Promise.reject(new Error("no")))).rejects.toThrow("no");
    await expect(lock.read(() => Promise.reject(new Error("no")))).rejects.toThrow("no");
    expect(await lock.write(() => 1)).toBe(1);
  });
});
