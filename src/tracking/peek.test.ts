import { describe, expect, it } from "vitest";
import { fakeMachine, markedPages } from "../../test/support/fake-host/machine.js";
import { writeableAreas } from "./areas.js";
import { deviceOwner } from "./owner.js";
import { openPeek } from "./peek.js";
import { iommuTracker } from "./trackers/iommu.js";

async function tracked() {
  const machine = await fakeMachine([{ id: "nic0" }]);
  const { iommufd, ioas, memory } = machine;
  const nic = machine.device("nic0");
  const hwpt = await iommufd.allocHwpt({ device: nic.deviceId, ioas, dirtyTracking: true });
  await nic.attach(hwpt);
  const ranges = writeableAreas(memory);
  const reader = await iommuTracker({ iommufd, hwpt, owner: deviceOwner("nic0") }).start({ ranges });
  const peek = openPeek(memory, [{ owner: deviceOwner("nic0"), tracker: "iommu", iommufd, hwpt }]);
  return { nic, reader, peek, ranges };
}

const pagesOf = async (peek: ReturnType<typeof openPeek>) => markedPages((await peek.read({ quiesced: false })).dirty);

describe("looking at an HWPT that somebody else reads", () => {
  it("names what became dirty since the last look, and takes no bit from the reader", async () => {
    const { nic, reader, peek, ranges } = await tracked();
    await nic.write(7);
    await peek.start();
    await nic.write(9);
    expect(await pagesOf(peek)).toEqual([9]);
    expect(await pagesOf(peek)).toEqual([]);
    expect((await reader.readAndClear(ranges[0])).count()).toBe(2);
  });

  it("names a page again once its reader has cleared it and it was seen clean", async () => {
    const { nic, reader, peek, ranges } = await tracked();
    await peek.start();
    await nic.write(9);
    expect(await pagesOf(peek)).toEqual([9]);
    await reader.readAndClear(ranges[0]);
    expect(await pagesOf(peek)).toEqual([]);
    await nic.write(9);
    expect(await pagesOf(peek)).toEqual([9]);
    expect(peek.ledger.totals().nic0).toMatchObject({ reported: 2, exclusive: 2 });
  });

  it.each(["device", "pinned", "cpu", "type1", "emulated-iommu"] as const)(
    "refuses the tracker '%s', whose bits a look would take",
    async (tracker) => {
      const { memory, iommufd } = await fakeMachine([]);
      expect(() => openPeek(memory, [{ owner: deviceOwner("x0"), tracker, iommufd, hwpt: 1 }])).toThrow(
        expect.objectContaining({ code: "WOULD_STEAL_BITS", remedy: expect.stringContaining("feed") }),
      );
    },
  );
});
