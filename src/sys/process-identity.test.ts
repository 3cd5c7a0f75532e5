import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { isAlive, lives, type ProcessIdentity, thisProcess } from "./process-identity.js";

describe("a process's identity", () => {
  it("is that of a process that lives, for this one", () => {
    expect(thisProcess().pid).toBe(process.pid);
    expect(thisProcess().started).not.toBe("");
    expect(lives(thisProcess())).toBe(true);
  });

  it("tells another process that was given the same pid from the one that had it", () => {
    expect(lives({ ...thisProcess(), started: "1" })).toBe(false);
  });

  it("of a process of this computer's earlier boot is of one that has ended", () => {
    expect(lives({ ...thisProcess(), boot: "another" })).toBe(false);
  });

  it("of another computer's process, or without a start, tells nothing", () => {
    expect(lives({ ...thisProcess(), started: "" })).toBe(null);
    expect(lives({ ...thisProcess(), boot: "another", host: "elsewhere" })).toBe(null);
  });

  it("of a process that was killed is of one that has ended, and of one that is stopped is not", async () => {
    const print = `import(${JSON.stringify(new URL("./process-identity.js", import.meta.url).href)})
      .then(({ thisProcess }) => console.log(JSON.stringify(thisProcess()))); setInterval(() => {}, 1000)`;
    const child = spawn(process.execPath, ["-e", print], { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = (await once(child.stdout, "data")) as [Buffer];
    const identity = JSON.parse(String(line)) as ProcessIdentity;
    expect(lives(identity)).toBe(true);
    child.kill("SIGSTOP");
    expect(lives(identity)).toBe(true);
    child.kill("SIGKILL");
    await once(child, "close");
    expect(lives(identity)).toBe(false);
    expect(isAlive(identity.pid)).toBe(false);
  });
});
