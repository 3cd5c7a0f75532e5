import { describe, expect, it } from "vitest";
import { MIG_STATES } from "../../host/device-feature.js";
import type { MigrationSupport } from "../../host/host.js";
import { type MigState, SAVING_GROUP } from "../../uapi/vfio.js";
import { ARCS, migrationPath } from "./mig-state.js";

/*
 * Written by hand from the comment above enum vfio_device_mig_state in include/uapi/linux/vfio.h: per transition the
 * states on the way to it, for a device with P2P and PRE_COPY. null: not permitted.
 */
type Table = { [from in MigState]?: { [to in MigState]?: readonly MigState[] | null } };
const FULL: Table = {
  STOP: {
    STOP: [],
    RUNNING: ["RUNNING_P2P"],
    STOP_COPY: [],
    RESUMING: [],
    RUNNING_P2P: [],
    PRE_COPY: ["RUNNING_P2P", "RUNNING"],
    PRE_COPY_P2P: ["RUNNING_P2P"],
  },
  RUNNING: {
    STOP: ["RUNNING_P2P"],
    RUNNING: [],
    STOP_COPY: ["RUNNING_P2P", "STOP"],
    RESUMING: ["RUNNING_P2P", "STOP"],
    RUNNING_P2P: [],
    PRE_COPY: [],
    PRE_COPY_P2P: ["RUNNING_P2P"],
  },
  STOP_COPY: {
    STOP: [],
    RUNNING: ["STOP", "RUNNING_P2P"],
    STOP_COPY: [],
    RESUMING: ["STOP"],
    RUNNING_P2P: ["STOP"],
    PRE_COPY: null,
    PRE_COPY_P2P: null,
  },
  RESUMING: {
    STOP: [],
    RUNNING: ["STOP", "RUNNING_P2P"],
    STOP_COPY: ["STOP"],
    RESUMING: [],
    RUNNING_P2P: ["STOP"],
    PRE_COPY: ["STOP", "RUNNING_P2P", "RUNNING"],
    PRE_COPY_P2P: ["STOP", "RUNNING_P2P"],
  },
  RUNNING_P2P: {
    STOP: [],
    RUNNING: [],
    STOP_COPY: ["STOP"],
    RESUMING: ["STOP"],
    RUNNING_P2P: [],
    PRE_COPY: ["RUNNING"],
    PRE_COPY_P2P: [],
  },
  PRE_COPY: {
    STOP: ["RUNNING", "RUNNING_P2P"],
    RUNNING: [],
    STOP_COPY: ["PRE_COPY_P2P"],
    RESUMING: ["RUNNING", "RUNNING_P2P", "STOP"],
    RUNNING_P2P: ["RUNNING"],
    PRE_COPY: [],
    PRE_COPY_P2P: [],
  },
  PRE_COPY_P2P: {
    STOP: ["RUNNING_P2P"],
    RUNNING: ["RUNNING_P2P"],
    STOP_COPY: [],
    RESUMING: ["RUNNING_P2P", "STOP"],
    RUNNING_P2P: [],
    PRE_COPY: [],
    PRE_COPY_P2P: [],
  },
};

const SUPPORTS: { name: string; support: MigrationSupport; lacks: readonly MigState[] }[] = [
  { name: "P2P and PRE_COPY", support: { stopCopy: true, p2p: true, preCopy: true }, lacks: [] },
  {
    name: "P2P only",
    support: { stopCopy: true, p2p: true, preCopy: false },
    lacks: ["PRE_COPY", "PRE_COPY_P2P"],
  },
  {
    name: "PRE_COPY only",
    support: { stopCopy: true, p2p: false, preCopy: true },
    lacks: ["RUNNING_P2P", "PRE_COPY_P2P"],
  },
  {
    name: "STOP_COPY only",
    support: { stopCopy: true, p2p: false, preCopy: false },
    lacks: ["RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"],
  },
];

describe.each(SUPPORTS)("the migration states of a device with $name", ({ support, lacks }) => {
  for (const from of MIG_STATES) {
    for (const to of MIG_STATES) {
      const interior = FULL[from]?.[to];
      const impossible = from === "ERROR" || to === "ERROR" || lacks.includes(from) || lacks.includes(to);
      const expected =
        impossible || interior === null || interior === undefined
          ? null
          : from === to
            ? []
            : [...interior.filter((state) => !lacks.includes(state)), to];
      it(`${from} -> ${to} ${expected === null ? "is refused" : `goes by ${expected.join(", ") || "no arc"}`}`, () => {
        const path = migrationPath(from, to, support);
        expect(path?.map((arc) => arc.to) ?? null).toEqual(expected);
        if (path !== null && path.length > 0) expect(path[0].from).toBe(from);
      });
    }
  }
});

describe("the state machine", () => {
  it("walks only arcs of the header where all optional states exist", () => {
    const support = { stopCopy: true, p2p: true, preCopy: true };
    for (const from of MIG_STATES) {
      for (const to of MIG_STATES) {
        const path = migrationPath(from, to, support) ?? [];
        for (const arc of path) expect(ARCS.some(([a, b]) => a === arc.from && b === arc.to)).toBe(true);
        const interior = path.slice(0, -1).map((arc) => arc.to);
        if (!(SAVING_GROUP.has(from) && SAVING_GROUP.has(to))) {
          expect(interior.some((state) => SAVING_GROUP.has(state))).toBe(false);
        }
      }
    }
  });
});
