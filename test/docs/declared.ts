/*
 * What the test of the documents has to know besides them: which commands can't run in it, and what stands in for names that
 * only a reader's own machines have. Each entry is checked to belong to a command that a document still has.
 */

/** Commands that are not run, by how they begin, with the reason. */
export const NOT_RUN: Readonly<Record<string, string>> = {
  "npm ci && npm run build": "installs packages from the network",
  "npm ci && npm test": "installs packages from the network, and is what runs this",
  "npx dirtmap plan --host linux --device 3b:00.1 3b:00.2": "needs these two devices",
  "npx dirtmap plan --host linux --only qemu": "needs a device that is on a VFIO driver",
  "npm run test:kernel": "boots guests in QEMU, for minutes",
  "npm run bench": "measures for minutes",
  "DIRTMAP_LIBVFIO_USER=../libvfio-user npm run bench": "needs libvfio-user built, and minutes",
  "npm run test:fuzz": "runs for minutes; test/fuzz/fuzz.test.ts runs a short one",
  "npm run test:mutants": "breaks the core in many places, for tens of minutes",
  "DIRTMAP_SEEDS=1-1000 npm run test:stress": "runs for hours; a few seeds run with the other tests",
  "npx dirtmap receive --listen tls://0.0.0.0:7700 --tls-folder certs --file":
    "needs a source's disk and a served device; test/machine/granted.test.ts has them",
  "dirtmap receive --qmp": "needs a QEMU that waits for a guest; test/interop/qemu-move.test.ts has one",
  "dirtmap receive --libvirt": "needs libvirt; src/qemu/qmp/libvirt-monitor.test.ts has a fake one",
  "dirtmap migrate --libvirt": "needs libvirt; src/qemu/qmp/libvirt-monitor.test.ts has a fake one",
  "dirtmap migrate --qmp": "needs the guest of a QEMU; test/interop/qemu-move.test.ts has one",
  "npx dirtmap watch --qmp": "needs a QEMU that migrates; src/cli/run/watch.test.ts has a fake one",
  "dirtmap watch --libvirt": "needs libvirt; src/qemu/qmp/libvirt-monitor.test.ts has a fake one",
  "dirtmap device nvme --socket ./nvme2": "serves beside the commands that are not run",
  "npx dirtmap migrate --qmp": "needs the guest of a QEMU; test/interop/qemu-move.test.ts has one",
  "npx dirtmap device nvme --socket ./nvme2": "serves beside the commands that are not run",
  "npx dirtmap device status ./mlx5": "needs a device that a migration left; device-control.test.ts has one",
  "npx dirtmap device resume ./mlx5": "needs a device that a migration left; device-control.test.ts has one",
};

/** Commands whose output needs a QEMU that migrates: compared with a recorded one by test/docs/watching.test.ts. */
export const OF_A_MIGRATION = /^dirtmap watch --qmp /;

/** Commands whose output needs devices: compared in a guest that has the README's, by test/kernel/pci/readme.test.ts. */
export const IN_A_GUEST = /^npx dirtmap (probe|plan) --host linux$/;

/** A command whose output needs the guest of a QEMU: compared where one is moved, by test/interop/qemu-move.test.ts. */
export const MOVES_A_GUEST = /^npx dirtmap migrate --qmp /;

/** Commands that go on until they are stopped: started before what follows them in a block, once standard error says this. */
export const SERVICES: readonly { readonly command: RegExp; readonly ready: RegExp }[] = [
  { command: /^(npx )?dirtmap receive /, ready: /^listening on / },
  { command: /^(npx )?dirtmap serve\b/, ready: /^the dashboard is at / },
  { command: /^(npx )?dirtmap device /, ready: /^serving / },
];

/** Free ports, taken before anything is started. */
export interface Ports {
  readonly migration: number;
  readonly dashboard: number;
}

/** Lines of an output that depend on the machine, or on what was measured. */
export const FREE_LINES = [/^ {2}on: /, /^warning: /, /^\w+\d: '/, /^ {2}not /, /^from the benchmark/];

/** Commands whose rows hold what was measured, or what was decided by it: of these the first two cells are compared. */
export const MEASURES = /dirtmap (bench trackers|recommend)/;

/** What is run in place of what is written, so that it runs here, and in seconds. */
export function substituted(command: string, { migration, dashboard }: Ports): string {
  return SUBSTITUTIONS.reduce((text, [from, to]) => text.replace(from, to), command)
    .replaceAll(":7700", `:${migration}`)
    .replaceAll(":7780", `:${dashboard}`);
}

/** What an output says because of a substitution. */
export const SAID_SINCE_SUBSTITUTED = ", few repetitions (--quick)";

/** Each is needed by some document. */
export const SUBSTITUTIONS: readonly (readonly [from: RegExp, to: string])[] = [
  // Names of machines, and addresses that the world could reach.
  [/dst\.example\.com/, "localhost"],
  [/0\.0\.0\.0/, "127.0.0.1"],
  [/\/\/HOST:/, "//127.0.0.1:"],
  // A dashboard at its own port may be there already.
  [/dirtmap serve$/, "dirtmap serve --listen 127.0.0.1:7780"],
  // Smaller, and in no hurry: what is tested is that it works, on a machine that may be busy.
  [/dirtmap migrate(?= |$)/, "dirtmap migrate --memory 64M --run-after 50ms --downtime-limit 60s"],
  [/--memory 1G /, ""],
  [/--scenario out-of-process$/, "--scenario out-of-process --memory 64M"],
  [/dirtmap bench trackers/, "dirtmap bench trackers --quick --memory 64M"],
  [
    /dirtmap bench designs(?= --(migrate|output))/,
    "dirtmap bench designs --quick --devices 1 --workload b --memory 8M --repetitions 1",
  ],
  [/--output docs\/figures\/designs\.json/, "--output docs/figures/new.json"],
  [/--output FILE/, "--output FILE --quiet"],
  [
    /record --scenario mixed --interval 100ms --duration 10s/,
    "record --scenario mixed --memory 64M --interval 50ms --duration 500ms",
  ],
  [/replay mixed\.dtrc/, "replay mixed.dtrc --interval 50ms --duration 500ms"],
  [/--predict$/, "--predict 200ms"],
  [
    /predict --trace mixed\.dtrc --bandwidth 10Gbit --downtime-limit 50ms/,
    "predict --trace mixed.dtrc --downtime-limit 60s",
  ],
  // QEMU is to take the options and to realize the devices; no guest is run.
  [/ …/, ""],
];
