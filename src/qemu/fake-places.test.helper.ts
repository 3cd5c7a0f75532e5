import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Served, told } from "../vfio-user/server/served.test.helper.js";
import { FakeVm } from "./fake-vm.test.helper.js";

/** For tests: two QEMUs that tell what real ones tell, each with a device that is really served, and a folder for journals. */
export class FakePlaces implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-move-"));
  readonly servers: { source: Served; destination: Served };
  readonly source: FakeVm;
  destination: FakeVm;

  private constructor(servers: FakePlaces["servers"], source: FakeVm, destination: FakeVm) {
    this.servers = servers;
    this.source = source;
    this.destination = destination;
    source.to = destination;
    // The table of MSI-X is written by DMA messages, which nobody here answers.
    for (const { pc } of [source, destination]) pc.function.config[0x34 / 4] = 0x60;
    source.pc.function.drive();
  }

  static async start(): Promise<FakePlaces> {
    const servers = { source: await Served.start(), destination: await Served.start({ incoming: true }) };
    for (const server of [servers.source, servers.destination]) server.giveMemory();
    const source = await FakeVm.start("running", servers.source.server.path);
    return new FakePlaces(servers, source, await FakeVm.start("inmigrate", servers.destination.server.path));
  }

  /** What the servers tell once their connections are gone. */
  async deviceStates() {
    const states = [this.servers.source, this.servers.destination].map((server) => {
      using control = server.control();
      const { state, waitsForState, writePath, log, migration } = told(control);
      return { state, waitsForState, path: writePath?.path, log, notice: migration?.notice ?? null };
    });
    return { source: states[0], destination: states[1] };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { source, destination, servers } = this;
    for (const each of [source, destination, servers.source, servers.destination]) await each[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
