import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { FakeSystem } from "../fake-system.test.helper.js";
import { isVfioDriver } from "../sysfs/group.js";
import { dependentsOf } from "./dependents.js";

/**
 * What a kernel does with the commands that remedies consist of, on a fixture's trees: drivers are bound and unbound, modules
 * loaded, VFs switched off, mdevs made and removed; and what depends on a driver goes with it. A command that a kernel
 * would refuse throws.
 */
export class FakeKernel {
  readonly #system: FakeSystem;
  readonly #release: string;
  /** Drivers that a module brings, by its name. */
  readonly #drivers: ReadonlyMap<string, string>;
  #made = 1000;

  constructor(system: FakeSystem, release: string, drivers: ReadonlyMap<string, string>) {
    this.#system = system;
    this.#release = release;
    this.#drivers = drivers;
  }

  run(command: string): void {
    const modprobe = /^modprobe (\S+)$/.exec(command);
    if (modprobe !== null) {
      this.#modprobe(modprobe[1]);
      return;
    }
    const echo = /^echo (\S+) > (\S+)$/.exec(command);
    if (echo === null) throw new Error(`no kernel knows '${command}'`);
    const [, value, path] = echo;
    // The shell opens the file that is written to.
    if (!existsSync(dirname(path))) throw new Error(`'${command}': there is no ${path}`);
    const device = dirname(path);
    const writes: Readonly<Record<string, () => void>> = {
      driver_override: () => this.#system.file(path, `${value}\n`),
      unbind: () => this.#unbind(dirname(realpathSync(path)), value),
      drivers_probe: () => this.#probe(device, value),
      sriov_numvfs: () => this.#setVfs(device, Number(value)),
      remove: () => this.#remove(realpathSync(device)),
      create: () => this.#createMdev(device, value),
    };
    const write = writes[basename(path)];
    if (write === undefined) throw new Error(`no kernel knows '${command}'`);
    write();
  }

  #modprobe(module: string): void {
    const { modules, sys } = this.#system.roots;
    const list = `${modules}/${this.#release}/modules.dep`;
    // Where the list isn't seen, it may still be there for the kernel.
    if (existsSync(list) && !readFileSync(list, "latin1").includes(`/${module}.ko:`))
      throw new Error(`modprobe: ${module} is not found`);
    const driver = this.#drivers.get(module) ?? module;
    const bus = driver === "vfio-platform" ? "platform" : "pci";
    this.#system.file(`${sys}/bus/${bus}/drivers/${driver}/unbind`, "");
  }

  /** @param driver its folder */
  #unbind(driver: string, id: string): void {
    const bus = dirname(dirname(driver));
    const device = realpathSync(`${bus}/devices/${id}`);
    if (realpathSync(`${device}/driver`) !== driver) throw new Error(`${id} is not on ${driver}`);
    if (!existsSync(`${driver}/unbind`)) throw new Error(`${driver} keeps its devices`);
    rmSync(`${device}/driver`);
    rmSync(`${device}/vfio-dev`, { recursive: true, force: true });
    for (const gone of dependentsOf(this.#system.roots, device)) this.#removeById(gone);
    if (existsSync(`${device}/sriov_numvfs`)) this.#system.file(`${device}/sriov_numvfs`, "0\n");
  }

  #probe(bus: string, id: string): void {
    const device = realpathSync(`${bus}/devices/${id}`);
    if (existsSync(`${device}/driver`)) return;
    const wanted = readFileSync(`${device}/driver_override`, "latin1").trim();
    if (!existsSync(`${bus}/drivers/${wanted}`)) throw new Error(`there is no driver ${wanted}`);
    const vfs = existsSync(`${device}/sriov_numvfs`) ? Number(readFileSync(`${device}/sriov_numvfs`, "latin1")) : 0;
    if (isVfioDriver(wanted) && vfs > 0) throw new Error(`${wanted} takes no PF with VFs`);
    this.#bind(device, `${bus}/drivers/${wanted}`);
  }

  #bind(device: string, driver: string): void {
    this.#system.link(`${device}/driver`, driver);
    const vfio = `vfio${this.#made++}`;
    this.#system.file(`${device}/vfio-dev/${vfio}/dev`, `511:${this.#made}\n`);
    this.#system.file(`${this.#system.roots.dev}/vfio/devices/${vfio}`, "");
  }

  #setVfs(pf: string, count: number): void {
    if (!existsSync(`${pf}/driver`)) throw new Error("no driver is bound that could switch VFs");
    if (count !== 0) throw new Error("no remedy switches VFs on");
    for (const link of readdirSync(pf).filter((name) => name.startsWith("virtfn"))) {
      this.#removeById(basename(readlinkSync(`${pf}/${link}`)));
      rmSync(`${pf}/${link}`);
    }
    this.#system.file(`${pf}/sriov_numvfs`, "0\n");
  }

  #createMdev(type: string, id: string): void {
    const parent = dirname(dirname(type));
    const { sys } = this.#system.roots;
    if (existsSync(`${sys}/bus/mdev/devices/${id}`)) throw new Error(`${id} is there already`);
    const path = `${parent}/${id}`;
    this.#system.file(`${path}/uevent`, "");
    this.#system.link(`${path}/mdev_type`, type);
    this.#system.link(`${path}/subsystem`, `${sys}/bus/mdev`);
    this.#system.link(`${sys}/bus/mdev/devices/${id}`, path);
    this.#bind(path, `${sys}/bus/mdev/drivers/mtty`);
  }

  #removeById(id: string): void {
    const { sys } = this.#system.roots;
    const bus = ["pci", "mdev", "platform"].find((name) => existsSync(`${sys}/bus/${name}/devices/${id}`));
    if (bus !== undefined) this.#remove(realpathSync(`${sys}/bus/${bus}/devices/${id}`));
  }

  /** A device with all that lies below it. */
  #remove(device: string): void {
    const { roots } = this.#system;
    const gone = [basename(device), ...dependentsOf(roots, device)];
    rmSync(device, { recursive: true });
    for (const id of gone) {
      for (const bus of ["pci", "mdev", "platform"]) rmSync(`${roots.sys}/bus/${bus}/devices/${id}`, { force: true });
      const groups = `${roots.sys}/kernel/iommu_groups`;
      if (!existsSync(groups)) continue;
      for (const group of readdirSync(groups)) rmSync(`${groups}/${group}/devices/${id}`, { force: true });
    }
  }
}
