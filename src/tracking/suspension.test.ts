import { setTimeout as sleep } from "node:timers/promises";
import { expect, test, vi } from "vitest";
import { type FakeMachine, fakeMachine } from "../../test/support/fake-host/machine.js";
import { UapiError } from "../uapi/errno.js";
import { DEFAULT_POLICY, type TrackerChoice } from "./choice.js";
import { chooseTrackers } from "./policy.js";
import { probeMachine } from "./probe.js";
import { suspendDevices } from "./suspension.js";

const OLD = { iommuTracks: false };

async function choicesFor(machine: FakeMachine): Promise<TrackerChoice[]> {
  return chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, untracked: "suspend" });
}

test("a suspended device is out of its peers' reach before it stops, and back after it runs again", async () => {
  const machine = await fakeMachine([{ id: "old0", ...OLD }, { id: "nic0" }]);
  const order: string[] = [];
  const old = machine.device("old0");
  const setState = old.setState.bind(old);
  old.setState = async (next) => {
    order.push(`${next}, reachable: ${machine.mayP2p("nic0", "old0")}`);
    return setState(next);
  };
  const suspension = await suspendDevices(machine, await choicesFor(machine));
  expect(suspension.devices).toEqual(["old0"]);
  expect(await machine.device("nic0").state()).toBe("RUNNING");
  await suspension.resume();
  expect(order).toEqual(["STOP, reachable: false", "RUNNING, reachable: false"]);
  expect(machine.mayP2p("nic0", "old0")).toBe(true);
});

test("its own outage is measured until it runs again", async () => {
  const machine = await fakeMachine([{ id: "old0", ...OLD }, { id: "nic0" }]);
  const suspension = await suspendDevices(machine, await choicesFor(machine));
  await sleep(5);
  const soFar = suspension.suspendedMs("old0");
  expect(soFar).toBeGreaterThan(3);
  await suspension.resume();
  const whole = suspension.suspendedMs("old0");
  expect(whole).toBeGreaterThanOrEqual(soFar);
  await suspension.resume();
  await sleep(5);
  expect(suspension.suspendedMs("old0")).toBe(whole);
  expect(suspension.suspendedMs("nic0")).toBe(0);
});

test("a device that the migration took on to STOP_COPY, or that went to ERROR, runs again too", async () => {
  const machine = await fakeMachine([
    { id: "old0", ...OLD },
    { id: "old1", ...OLD },
  ]);
  const suspension = await suspendDevices(machine, await choicesFor(machine));
  await machine.device("old0").setState("STOP_COPY");
  machine.device("old1").failNext({ from: "STOP", to: "STOP_COPY" });
  await expect(machine.device("old1").setState("STOP_COPY")).rejects.toMatchObject({ code: "EIO" });
  await suspension.resume();
  expect(await machine.device("old0").state()).toBe("RUNNING");
  expect(await machine.device("old1").state()).toBe("RUNNING");
});

test("where one can't be stopped, those that were run again", async () => {
  const machine = await fakeMachine([
    { id: "old0", ...OLD },
    { id: "old1", ...OLD },
  ]);
  machine.device("old1").script.fail("setState", "EIO");
  await expect(suspendDevices(machine, await choicesFor(machine))).rejects.toMatchObject({ code: "CANNOT_SUSPEND" });
  expect(await machine.device("old0").state()).toBe("RUNNING");
  expect(machine.unreachable.size).toBe(0);
});

test("a device that runs well again is not reset", async () => {
  const machine = await fakeMachine([{ id: "old0", ...OLD }]);
  const reset = vi.spyOn(machine.device("old0"), "reset");
  const suspension = await suspendDevices(machine, await choicesFor(machine));
  await suspension.resume();
  expect(reset).not.toHaveBeenCalled();
  expect(machine.device("old0").states).toEqual(["RUNNING", "STOP", "RUNNING"]);
});

test("a failure is told of when those that were stopped run again, and not before", async () => {
  const machine = await fakeMachine([
    { id: "old0", ...OLD },
    { id: "old1", ...OLD },
  ]);
  const choices = await choicesFor(machine);
  machine.device("old1").script.fail("setState", "EIO");
  const old = machine.device("old0");
  const setState = old.setState.bind(old);
  old.setState = async (next) => {
    if (next === "RUNNING") for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    return setState(next);
  };
  await expect(suspendDevices(machine, choices)).rejects.toMatchObject({ code: "CANNOT_SUSPEND" });
  expect(old.states).toEqual(["RUNNING", "STOP", "RUNNING"]);
});

test("a device that can't be asked whether it supports STOP is not suspended, and the reason is told", async () => {
  const machine = await fakeMachine([{ id: "old0", ...OLD }]);
  const choices = await choicesFor(machine);
  machine.device("old0").migration = () => Promise.reject(new Error("it is gone"));
  await expect(suspendDevices(machine, choices)).rejects.toMatchObject({
    code: "CANNOT_SUSPEND",
    message: "can't suspend a device: it is gone",
  });
  machine.device("old0").migration = () =>
    Promise.reject(new UapiError("ENOTTY", { syscall: "ioctl", attempted: "ask" }));
  await expect(suspendDevices(machine, choices)).rejects.toMatchObject({
    code: "CANNOT_SUSPEND",
    message: "old0 can't be suspended: it does not support STOP",
  });
});

test("a device without migration support is refused, whatever was chosen", async () => {
  const machine = await fakeMachine([{ id: "old0", ...OLD }]);
  const choices = await choicesFor(machine);
  machine.device("old0").migration = async () => ({ stopCopy: false, p2p: false, preCopy: false });
  await expect(suspendDevices(machine, choices)).rejects.toMatchObject({
    code: "CANNOT_SUSPEND",
    message: "old0 can't be suspended: it does not support STOP",
  });
  expect(machine.device("old0").states).toEqual(["RUNNING"]);
});
