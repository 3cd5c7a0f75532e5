import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, describe, expect, it } from "vitest";
import { dirtmap, startDirtmap } from "../../../test/support/program.js";
import { RawClient } from "../../vfio-user/raw-client.test.helper.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-device-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const failed = (...args: readonly string[]) => dirtmap(["device", ...args]);

describe.runIf(process.platform === "linux")("dirtmap device", () => {
  it.each(["SIGINT", "SIGTERM"] as const)(
    "serves until %s, says when it is ready and what clients do wrong",
    async (signal) => {
      const path = join(folder, signal);
      const options = ["--option", "vram=64K", "--option", "rate=0"];
      const { child, ended } = startDirtmap(["device", "vgpu", "--socket", path, ...options, "--json"]);
      const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
      const event = async () => JSON.parse((await lines.next()).value ?? "null");
      expect(await event()).toEqual({
        schemaVersion: 1,
        event: "ready",
        model: "vgpu",
        socket: path,
        control: `${path}.control`,
      });
      using client = RawClient.open(path);
      expect(client.regionRead(2, 65535, 1)).toHaveLength(1);
      expect(() => client.regionRead(2, 65536, 1)).toThrow(/EINVAL/);
      expect(await event()).toMatchObject({
        event: "log",
        line: expect.stringMatching(/VFIO_USER_REGION_READ: EINVAL/),
      });
      child.kill(signal);
      expect(await ended).toMatchObject({ code: 0 });
      expect(existsSync(path) || existsSync(`${path}.control`)).toBe(false);
    },
  );

  it("refuses what can't be with exit code 2, and says what would work", async () => {
    const path = join(folder, "refused");
    expect(await failed("nix", "--socket", path)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("there are: mlx5"),
    });
    expect(await failed("mlx5")).toMatchObject({ code: 2, stderr: expect.stringContaining("--socket") });
    expect(await failed("mlx5", "--socket", path, "--option", "rate")).toMatchObject({ code: 2 });
    expect(await failed("mlx5", "--socket", path, "--option", "memory=huge")).toMatchObject({ code: 2 });
    expect(await failed("mlx5", "--socket", path, "--dma", "none")).toMatchObject({ code: 2 });
    writeFileSync(path, "");
    const taken = await failed("mlx5", "--socket", path);
    expect(taken).toMatchObject({ code: 2, stderr: expect.stringContaining("already") });
    expect(existsSync(path)).toBe(true);
  });
});
