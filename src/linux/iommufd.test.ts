import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { createArena } from "../memory/arena.js";
import { holdsOf } from "../memory/holds.js";
import { LinuxIommufd } from "./linux-iommufd.js";

const RW = { readable: true, writeable: true };

// What a kernel answers is tested in one: test/kernel/mock/iommufd.test.ts. A file that knows no ioctl stands for one
// that is too old.
describe.runIf(process.platform === "linux")("an iommufd of a kernel that doesn't know an ioctl", () => {
  it("says from which release on Linux has it", async () => {
    await using iommufd = LinuxIommufd.open("/dev/null");
    const into = new DirtyBitmap({ iova: 0n, length: 4096n, granule: 4096 });
    const calls = [
      [iommufd.allocIoas(), "6.2"],
      [iommufd.hwInfo(1), "6.6"],
      [iommufd.getDirtyBitmap(1, { iova: 0n, length: 4096n, pageSize: 4096, into, clear: true }), "6.7"],
    ] as const;
    for (const [call, since] of calls) {
      await expect(call).rejects.toMatchObject({ code: "ENOTTY", remedy: expect.stringContaining(`Linux ${since} `) });
    }
  });

  it("is never asked for an empty range at IOVA 0, which a kernel takes for the whole address space", async () => {
    await using iommufd = LinuxIommufd.open("/dev/null");
    const into = new DirtyBitmap({ iova: 0n, length: 4096n, granule: 4096 });
    const read = iommufd.getDirtyBitmap(1, { iova: 0n, length: 0n, pageSize: 4096, into, clear: true });
    await expect(read).rejects.toMatchObject({ code: "EINVAL", remedy: "give a length above 0" });
  });

  it("holds no memory that was not mapped, neither here nor on a thread", async () => {
    await using iommufd = LinuxIommufd.open("/dev/null");
    const arena = createArena(4 * 2 ** 20);
    for (const length of [4096, arena.bytes]) {
      await expect(iommufd.map(1, { arena, offset: 0, length }, RW)).rejects.toMatchObject({ code: "ENOTTY" });
    }
    expect(holdsOf(arena).count).toBe(0);
  });
});
