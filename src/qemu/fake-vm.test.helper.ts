import { FakePc } from "./fake-pc.test.helper.js";

const WRITEABLE_CAPABILITIES = ["events", "pause-before-switchover", "multifd", "late-block-activate", "return-path"];

/**
 * For tests: a QEMU that migrates to another, as far as its monitor tells: statuses, run states and events, and a device that is
 * served at a real socket. Memory is nobody's.
 */
export class FakeVm implements AsyncDisposable {
  readonly pc: FakePc;
  runState: string;
  status = "none";
  capabilities = new Map(WRITEABLE_CAPABILITIES.map((name) => [name, false]));
  /** The QEMU that it migrates to. */
  to: FakeVm | undefined;
  /** While it sends the rest, its main loop waits for a destination that stands still. */
  sticks = false;
  /** It was told to quit. */
  hasQuit = false;
  /** Called before each command that changes something. */
  before: (command: string) => void = () => {};

  private constructor(pc: FakePc, runState: string, socket: string) {
    this.pc = pc;
    this.runState = runState;
    const { qemu } = pc;
    const escaped = socket.replace(
      /[/[\]\\]/g,
      (special) => `\\x${special.charCodeAt(0).toString(16).padStart(2, "0")}`,
    );
    const list = qemu.answers.get("qom-list");
    qemu.answers.set("qom-list", (command) =>
      command.arguments.path === "/machine/peripheral/disk"
        ? [{ name: `vfio-user:${escaped} base BAR 0[0]`, type: "child<memory-region>" }]
        : list?.(command),
    );
    qemu.answers.set("query-status", () => ({ running: this.running, status: this.runState }));
    qemu.answers.set("query-migrate", () => (this.status === "none" ? {} : { status: this.status }));
    qemu.answers.set("query-migrate-capabilities", () =>
      Array.from(this.capabilities, ([capability, state]) => ({ capability, state })),
    );
    qemu.answers.set("query-migrate-parameters", () => ({}));
    this.#does("migrate-set-capabilities", (its) => {
      for (const { capability, state } of its.capabilities as { capability: string; state: boolean }[]) {
        this.capabilities.set(capability, state);
      }
    });
    this.#does("migrate", () => {
      this.#becomes("active");
      setImmediate(() => {
        if (this.status !== "active") return;
        this.#runs("finish-migrate", "STOP");
        this.#becomes("pre-switchover");
      });
    });
    this.#does("migrate-incoming", () => {
      this.#becomes("setup");
    });
    this.#does("migrate-continue", () => {
      if (this.sticks) {
        this.status = "device";
        setImmediate(() => {
          qemu.standsStill = true;
        });
        return;
      }
      this.runState = "postmigrate";
      this.#becomes("completed");
      if (this.to === undefined) return;
      this.to.runState = "paused";
      this.to.#becomes("completed");
    });
    this.#does("migrate_cancel", () => {
      this.#becomes("cancelled");
      this.#runs("running", "RESUME");
    });
    this.#does("yank", () => {
      // One that stands still for another reason goes on doing so.
      if (!this.sticks) return;
      qemu.standsStill = false;
      this.#becomes("failed");
      this.#runs("running", "RESUME");
    });
    this.#does("cont", () => this.#runs("running", "RESUME"));
    this.#does("stop", () => this.#runs("paused", "STOP"));
    this.#does("quit", () => {
      this.hasQuit = true;
      this.runState = "shutdown";
    });
  }

  static async start(runState: "running" | "inmigrate", socket: string): Promise<FakeVm> {
    return new FakeVm(await FakePc.start(), runState, socket);
  }

  get running(): boolean {
    return this.runState === "running";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.pc[Symbol.asyncDispose]();
  }

  #does(command: string, what: (its: Readonly<Record<string, unknown>>) => void): void {
    this.pc.qemu.answers.set(command, ({ arguments: its }) => {
      try {
        this.before(command);
      } catch (error) {
        return { error: { class: "GenericError", desc: (error as Error).message } };
      }
      what(its);
      return {};
    });
  }

  #becomes(status: string): void {
    this.status = status;
    if (this.capabilities.get("events") === true) this.pc.qemu.event("MIGRATION", { status });
  }

  #runs(state: string, event: string): void {
    this.runState = state;
    this.pc.qemu.event(event);
  }
}
