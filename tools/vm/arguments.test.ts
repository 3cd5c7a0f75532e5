import { expect, test } from "vitest";
import { parseArguments } from "./arguments.js";

test("without arguments all machines run all tests", () => {
  expect(parseArguments([])).toEqual({
    machines: ["mock", "intel", "amd"],
    filters: [],
    nightly: false,
    replay: [],
    kernelLog: false,
    help: false,
  });
});

test("machines run in one order, whatever the order in which they are named, and each once", () => {
  expect(parseArguments(["--machine", "amd", "--machine", "mock", "--machine", "amd"]).machines).toEqual([
    "mock",
    "amd",
  ]);
});

test("filters, a pattern of names and seeds are taken as they are", () => {
  const options = parseArguments(["iommufd", "-t", "a hole", "--replay", "7", "--replay", "0x9", "vfio"]);
  expect(options.filters).toEqual(["iommufd", "vfio"]);
  expect(options.testNamePattern).toBe("a hole");
  expect(options.replay).toEqual(["7", "0x9"]);
});

test.each([
  [["--machine", "arm"], "--machine arm: there are mock, intel, amd"],
  [["--nightly=yes"], "--nightly"],
  [["--unknown"], "--unknown"],
])("%j is refused, with what is wrong", (argv, message) => {
  expect(() => parseArguments(argv)).toThrow(message);
});
