import { describe, expect, test } from "vitest";
import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { blocksOf } from "../../docs/blocks.js";
import { IN_A_GUEST } from "../../docs/declared.js";
import { expectForm, transcriptsOf } from "../../docs/transcript.js";
import { dirtmap } from "../../support/program.js";
import { IOMMU } from "../support/machine.js";
import { bindToVfioPci, createMtty } from "../support/vfio-devices.js";

/** The README's host has an Intel IOMMU. */
const isReadmesHost = IOMMU.type === "intel-vtd";

/** The mdev of the README's transcripts. */
const MDEV = "31baeb03-1236-4189-a5dc-5d7a7f67df4c";

describe.runIf(isReadmesHost)(
  "on the README's host, a NIC on vfio-pci and an mdev beside devices on drivers of their own,",
  () => {
    const transcripts = blocksOf("README.md")
      .flatMap(({ text }) => transcriptsOf(text))
      .filter(({ command }) => IN_A_GUEST.test(command));

    test("it shows commands", () => {
      expect(transcripts.length).toBeGreaterThan(0);
    });

    test.each(transcripts)("$command prints what it shows", async (transcript) => {
      await using _nic = bindToVfioPci(PCI_DEVICES.igb);
      await using _mdev = createMtty(MDEV);
      const { code, stdout, stderr } = await dirtmap(transcript.command.split(" ").slice(2));
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      expectForm(stdout, transcript);
    });
  },
);
