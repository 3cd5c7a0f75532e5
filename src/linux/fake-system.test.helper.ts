import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { Roots } from "./roots.js";

/** A PCI device as a fixture describes it; what is left out is as on a plain device. */
export interface FakePci {
  readonly driver?: string;
  readonly group?: number;
  readonly iommu?: string;
  readonly class?: string;
  readonly vendor?: string;
  readonly device?: string;
  readonly numaNode?: string;
  readonly modalias?: string;
  /** `vfio3`: VFIO has it. */
  readonly vfio?: string;
  /** false: the kernel has no character device for it. */
  readonly cdev?: boolean;
  readonly pf?: string;
  readonly vfs?: number;
  /** The PCI device that it lies behind; by default only the root. */
  readonly below?: string;
  /** true: its driver can't be taken from it. */
  readonly stuck?: boolean;
}

/**
 * Trees of files that look like sysfs, devtmpfs and the rest, in a temporary folder: what this machine's kernel would
 * show if it had those devices. Dispose removes them.
 */
export class FakeSystem implements Disposable {
  readonly roots: Roots;
  readonly #folder = mkdtempSync(join(tmpdir(), "dirtmap-sysfs-"));

  constructor() {
    const under = (name: string) => join(this.#folder, name);
    this.roots = {
      sys: under("sys"),
      dev: under("dev"),
      proc: under("proc"),
      boot: under("boot"),
      modules: under("modules"),
    };
    // A test looks at it as another user.
    chmodSync(this.#folder, 0o755);
    for (const root of Object.values(this.roots)) mkdirSync(root);
  }

  /** Writes a file, making its folders. @param path absolute, under one of {@link roots} */
  file(path: string, text: string | Uint8Array): void {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }

  link(path: string, target: string): void {
    mkdirSync(dirname(path), { recursive: true });
    symlinkSync(target, path);
  }

  pci(id: string, fake: FakePci = {}): string {
    const { sys } = this.roots;
    const path = `${fake.below === undefined ? `${sys}/devices/pci0000:00` : this.real(fake.below)}/${id}`;
    this.file(`${path}/vendor`, `${fake.vendor ?? "0x8086"}\n`);
    this.file(`${path}/device`, `${fake.device ?? "0x1521"}\n`);
    this.file(`${path}/class`, `${fake.class ?? "0x020000"}\n`);
    this.file(`${path}/numa_node`, `${fake.numaNode ?? "-1"}\n`);
    if (fake.modalias !== undefined) this.file(`${path}/modalias`, `${fake.modalias}\n`);
    if (fake.pf !== undefined) {
      this.link(`${path}/physfn`, `../${fake.pf}`);
      const pf = `${sys}/devices/pci0000:00/${fake.pf}`;
      if (existsSync(pf)) this.link(`${pf}/virtfn${this.#made++}`, `../${id}`);
    }
    if (fake.vfs !== undefined) this.file(`${path}/sriov_numvfs`, `${fake.vfs}\n`);
    this.link(`${sys}/bus/pci/devices/${id}`, path);
    this.#device(path, id, "pci", fake);
    return path;
  }

  /** A PCI device's folder, by what its link in the bus' folder leads to. */
  real(id: string): string {
    return realpathSync(`${this.roots.sys}/bus/pci/devices/${id}`);
  }

  /**
   * @param parent a PCI device, or a virtual one that is made
   * @param api its type's `device_api`; null: the type has none
   */
  mdev(
    id: string,
    { parent, type, api = "vfio-pci", ...fake }: FakePci & { parent: string; type: string; api?: string | null },
  ): string {
    const isPci = existsSync(`${this.roots.sys}/bus/pci/devices/${parent}`);
    const path = `${isPci ? this.real(parent) : `${this.roots.sys}/devices/virtual/mtty/${parent}`}/${id}`;
    this.file(`${path}/uevent`, "");
    if (api !== null) this.file(`${dirname(path)}/mdev_supported_types/${type}/device_api`, `${api}\n`);
    this.link(`${path}/mdev_type`, `../mdev_supported_types/${type}`);
    this.link(`${this.roots.sys}/bus/mdev/devices/${id}`, path);
    this.#device(path, id, "mdev", fake);
    if (fake.group !== undefined)
      this.file(`${this.roots.sys}/kernel/iommu_groups/${fake.group}/name`, "vfio-noiommu\n");
    return path;
  }

  platform(id: string, fake: FakePci): string {
    const path = `${this.roots.sys}/devices/platform/${id}`;
    this.file(`${path}/uevent`, "");
    this.link(`${this.roots.sys}/bus/platform/devices/${id}`, path);
    this.#device(path, id, "platform", fake);
    return path;
  }

  /** An IOMMU: its name, and the files in its folder. */
  iommu(name: string, files: Readonly<Record<string, string>> = {}): void {
    const path = `${this.roots.sys}/class/iommu/${name}`;
    this.file(`${path}/uevent`, "");
    for (const [file, text] of Object.entries(files)) this.file(`${path}/${file}`, text);
  }

  #made = 0;

  #device(path: string, id: string, bus: string, { driver, group, iommu, vfio, cdev = true, stuck }: FakePci): void {
    const { sys, dev } = this.roots;
    this.link(`${path}/subsystem`, `${sys}/bus/${bus}`);
    if (driver !== undefined) {
      this.link(`${path}/driver`, `${sys}/bus/${bus}/drivers/${driver}`);
      if (stuck !== true) this.file(`${sys}/bus/${bus}/drivers/${driver}/unbind`, "");
    }
    if (iommu !== undefined) this.link(`${path}/iommu`, `${sys}/class/iommu/${iommu}`);
    if (group !== undefined) {
      this.link(`${path}/iommu_group`, `${sys}/kernel/iommu_groups/${group}`);
      this.link(`${sys}/kernel/iommu_groups/${group}/devices/${id}`, path);
    }
    if (vfio === undefined) return;
    mkdirSync(`${path}/vfio-dev/${vfio}`, { recursive: true });
    if (!cdev) return;
    this.file(`${path}/vfio-dev/${vfio}/dev`, `511:${this.#made++}\n`);
    this.file(`${dev}/vfio/devices/${vfio}`, "");
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
