import { describe, expect, it } from "vitest";
import { FakeQemu } from "./qmp/fake-qemu.test.helper.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";
import { checkStreamAddress, checkStreamSecurity } from "./stream-address.js";

describe("the address of QEMU's own stream", () => {
  it.each(["tcp:127.0.0.1:4444", "tcp:dst.example.com:0", "tcp:[::1]:65535", "unix:/run/vm/stream"])(
    "is %s",
    (address) => {
      expect(checkStreamAddress(address)).toBe(address);
    },
  );

  it.each([
    "exec:cat",
    "file:/tmp/a",
    "fd:3",
    "rdma:host:1",
    "tcp:host",
    "tcp:host:70000",
    "tcp:host:1,to=2",
    "tcp:[dst]:1",
    "unix:relative",
    "unix:/a,b=c",
    "unix:/a\n",
    "",
  ])("is not %j", (address) => {
    expect(() => checkStreamAddress(address)).toThrow(expect.objectContaining({ code: "BAD_ADDRESS" }));
  });

  it("must be this machine's, unless QEMU has TLS, or the operator allows it", async () => {
    await using fake = await FakeQemu.start();
    await using qemu = new Qemu(await SocketMonitor.open(fake.path));
    fake.answer("query-migrate-parameters", { "tls-creds": "" });
    for (const address of ["tcp:127.0.0.1:1", "tcp:[::1]:1", "tcp:localhost:1", "unix:/a"]) {
      await checkStreamSecurity(qemu, address, false);
    }
    await expect(checkStreamSecurity(qemu, "tcp:10.0.0.7:1", false)).rejects.toMatchObject({
      code: "INSECURE_ADDRESS",
      remedy: expect.stringContaining("tls-creds"),
    });
    await checkStreamSecurity(qemu, "tcp:10.0.0.7:1", true);
    fake.answer("query-migrate-parameters", { "tls-creds": "tls0" });
    await checkStreamSecurity(qemu, "tcp:10.0.0.7:1", false);
  });
});
