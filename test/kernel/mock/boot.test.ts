import { statSync } from "node:fs";
import { release } from "node:os";
import { expect, test } from "vitest";

test("the kernel is Linux 7.2", () => {
  expect(release()).toMatch(/^7\.2\./);
});

test("it has an iommufd, and its mock IOMMU", () => {
  expect(statSync("/dev/iommu").isCharacterDevice()).toBe(true);
  expect(statSync("/sys/kernel/debug/fail_iommufd").isDirectory()).toBe(true);
});
