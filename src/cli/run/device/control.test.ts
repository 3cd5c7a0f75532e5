import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, closeSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { dirtmap as run } from "../../../../test/support/program.js";
import { listenAt } from "../../../sys/unix-socket.js";
import { DIRTMAP_HANDOVER } from "../../../uapi/vfio-user.js";
import { RawClient } from "../../../vfio-user/raw-client.test.helper.js";
import { announce, setState } from "../../../vfio-user/server/served.test.helper.js";
import { type DeviceServer, serveDevice } from "../../../vfio-user/server/server.js";
import { EXIT_CODES } from "../../exit-codes.js";

/*
 * What an operator does about a device that a migration has left, with real processes.
 */

const HOST = new URL("../../../vfio-user/client/host.js", import.meta.url).href;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-device-control-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const dirtmap = (...args: readonly string[]) => run(args);

describe.runIf(process.platform === "linux")("dirtmap device status and resume", () => {
  const path = join(folder, "mlx5");
  let server: DeviceServer;
  let lines: string[];
  let child: ChildProcess | undefined;
  beforeEach(async () => {
    lines = [];
    server = await serveDevice({
      model: "mlx5",
      options: { rate: 0 },
      id: "vf0",
      path,
      log: (line) => lines.push(line),
    });
  });
  afterEach(async () => {
    child?.kill("SIGKILL");
    await server.close();
  });

  /** A process that controls the device: takes it to STOP_COPY, and says what it is told to. */
  async function controller(notices: readonly string[]): Promise<ChildProcess> {
    const script = `
      const { VfioUserHost } = await import(${JSON.stringify(HOST)});
      const host = new VfioUserHost([{ path: ${JSON.stringify(path)}, id: "vf0" }]);
      const device = await host.openControl("vf0");
      await device.setState("STOP_COPY");
      for (const notice of ${JSON.stringify(notices)}) await device.announceHandover(notice, "1f0c93ab");
      console.log("stopped");
      setInterval(() => {}, 1000);`;
    child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    if (child.stdout !== null) await once(child.stdout, "data");
    return child;
  }

  async function killed(notices: readonly string[]): Promise<void> {
    const controlling = await controller(notices);
    controlling.kill("SIGKILL");
    await once(controlling, "close");
    while (!lines.some((line) => line.includes("has gone and left"))) await new Promise((done) => setTimeout(done, 10));
  }

  it("tell that it runs again after its migration was killed", async () => {
    await killed([]);
    expect(lines.join()).toMatch(/has gone and left 'vf0' in STOP_COPY: it runs again/);
    const { code, stdout } = await dirtmap("device", "status", path, "--json");
    expect(code).toBe(EXIT_CODES.done.code);
    expect(JSON.parse(stdout)).toEqual({
      schemaVersion: 1,
      socket: path,
      id: "vf0",
      model: "mlx5",
      state: "RUNNING",
      failure: null,
      migration: null,
      log: null,
      advice: null,
    });
    expect((await dirtmap("device", "resume", path)).stdout).toBe("vf0 was running already\n");
  });

  it("leave it to the operator after its migration was killed in the middle of giving up", async () => {
    await killed(["committing"]);
    const { stdout } = await dirtmap("device", "status", path);
    expect(stdout).toMatch(
      /^vf0 \(mlx5\) at .*: STOP_COPY, moved there by control client 1, which has gone\n {2}log: off\n/,
    );
    expect(stdout).toContain(`if nothing runs there, \`dirtmap device resume ${path}\` lets it run here`);
    const resumed = await dirtmap("device", "resume", path, "--json");
    expect(resumed.code).toBe(EXIT_CODES.done.code);
    expect(JSON.parse(resumed.stdout)).toMatchObject({ id: "vf0", from: "STOP_COPY", state: "RUNNING", reset: false });
  });

  it("refuse to let it run where it was handed over, but for a reset", async () => {
    await killed(["committing", "gone"]);
    const refused = await dirtmap("device", "resume", path);
    expect(refused).toMatchObject({ code: EXIT_CODES.failed.code, stdout: "" });
    expect(refused.stderr).toMatch(/vf0 was handed over by migration 1f0c93ab: it must not go on here; .* --reset/);
    expect((await dirtmap("device", "resume", path, "--reset")).stdout).toBe("vf0 was reset, and runs\n");
    expect((await dirtmap("device", "status", path)).stdout).toMatch(/: RUNNING\n/);
  });

  it("refuse to take it away from a migration that is under way", async () => {
    using control = RawClient.open(server.controlPath);
    setState(control, "STOP_COPY");
    announce(control, DIRTMAP_HANDOVER.committing, "1f0c93ab");
    for (const reset of [[], ["--reset"]]) {
      const { code, stderr } = await dirtmap("device", "resume", path, ...reset);
      expect(code).toBe(EXIT_CODES.failed.code);
      expect(stderr).toMatch(/vf0 is in the middle of a migration: control client 1 has moved it to STOP_COPY/);
    }
  });

  it("say what is missing where no server of Dirtmap's is", async () => {
    const { code, stderr } = await dirtmap("device", "status", join(folder, "nobody"));
    expect(code).toBe(EXIT_CODES.failed.code);
    expect(stderr.trimEnd().split("\n")).toHaveLength(1);
    expect(stderr).toMatch(/ENOENT/);
    const foreign = join(folder, "foreign");
    const listener = listenAt(foreign);
    expect(await dirtmap("device", "status", foreign)).toMatchObject({
      code: EXIT_CODES.usage.code,
      stderr: `dirtmap: the server at ${foreign} is not Dirtmap's; ask that server's own tools\n`,
    });
    closeSync(listener);
  });
});

describe.runIf(process.platform === "linux")("the sockets of dirtmap device", () => {
  const serve = (path: string, socketGroup?: string) =>
    serveDevice({ model: "mlx5", options: { rate: 0 }, path, ...(socketGroup === undefined ? {} : { socketGroup }) });
  const modeOf = (path: string) => statSync(path).mode & 0o777;

  it("are their owner's alone, whatever the umask", async () => {
    const path = join(folder, "private");
    const before = process.umask(0);
    try {
      await using server = await serve(path);
      expect([path, server.controlPath].map(modeOf)).toEqual([0o600, 0o600]);
    } finally {
      process.umask(before);
    }
  });

  it("are a group's too, if one is named", async () => {
    const path = join(folder, "shared");
    const group = process.getgid?.() ?? 0;
    await using server = await serve(path, String(group));
    for (const socket of [path, server.controlPath]) {
      expect(modeOf(socket)).toBe(0o660);
      expect(statSync(socket).gid).toBe(group);
    }
  });

  it("are not made for a group that there is not, nor in a folder in which all may replace them", async () => {
    await expect(serve(join(folder, "x"), "no-such-group")).rejects.toMatchObject({ code: "BAD_SOCKET_GROUP" });
    const open = join(folder, "open");
    mkdirSync(open);
    chmodSync(open, 0o777);
    await expect(serve(join(open, "x"))).rejects.toMatchObject({ name: "UsageError", code: "UNSAFE_FOLDER" });
    expect(existsSync(join(open, "x"))).toBe(false);
    chmodSync(open, 0o1777);
    await using server = await serve(join(open, "x"));
    expect(modeOf(server.path)).toBe(0o600);
  });
});
