import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, describe, expect, it } from "vitest";
import { type DirtmapError, UsageError } from "../../errors.js";
import { makeCertificates, writeCertificates } from "./certs.js";
import { connectControl } from "./connect.js";
import { credentialFiles, loadCredentials, type TlsCredentials } from "./credentials.js";
import { formatEndpoint, parseEndpoint } from "./endpoint.js";
import { type Listener, listen } from "./listener.js";

describe("an address", () => {
  it("is read and written alike", () => {
    for (const text of ["tls://example.org:9000", "tls://10.0.0.1:1", "tls://[2001:db8::1]:65535", "tcp://[::1]:0"]) {
      expect(formatEndpoint(parseEndpoint(text))).toBe(text);
    }
    expect(parseEndpoint("tls://:9000")).toEqual({ scheme: "tls", host: "127.0.0.1", port: 9000 });
  });

  it.each([
    "",
    "tls://host",
    "http://host:1",
    "tls://host:65536",
    "tls://[nonsense]:1",
    "tls://2001:db8::1:9000",
    "tcp:1",
  ])("is refused with what would work: '%s'", (text) => {
    expect(() => parseEndpoint(text)).toThrow(expect.objectContaining({ code: "BAD_ADDRESS" }));
  });

  it("that leaves the machine must be TLS, unless the operator insists", () => {
    for (const text of ["tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://localhost:1", "tls://10.0.0.1:1"])
      parseEndpoint(text);
    for (const text of ["tcp://10.0.0.1:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://host:1"]) {
      expect(() => parseEndpoint(text)).toThrow(expect.objectContaining({ code: "INSECURE_TRANSPORT" }));
      expect(parseEndpoint(text, { insecure: true }).scheme).toBe("tcp");
    }
  });
});

const hosts = ["127.0.0.1", "localhost"];
const [good, other, expired] = await Promise.all([
  makeCertificates({ hosts }),
  makeCertificates({ hosts }),
  makeCertificates({ hosts, days: 0 }),
]);
const elsewhere = await makeCertificates({ hosts: ["example.org"] });

const listeners: Listener[] = [];
afterAll(async () => {
  for (const listener of listeners) await listener[Symbol.asyncDispose]();
});

async function listening(credentials?: TlsCredentials, onRefused?: (error: DirtmapError) => void): Promise<Listener> {
  const listener = await listen({
    endpoint: { scheme: credentials === undefined ? "tcp" : "tls", host: "127.0.0.1", port: 0 },
    credentials,
    ...(onRefused && { onRefused }),
  });
  listeners.push(listener);
  return listener;
}

/** What a source with these credentials finds out about a destination with those. */
async function meet(server: TlsCredentials, client: TlsCredentials) {
  const refused: DirtmapError[] = [];
  const stop = new AbortController();
  const listener = await listening(server, (error) => refused.push(error));
  const accepted = listener.acceptControl(stop.signal).catch(() => undefined);
  try {
    await using connection = await connectControl({ endpoint: listener.endpoint, credentials: client });
    return { answer: await connection.receive().catch((error: unknown) => error), refused };
  } catch (error) {
    return { answer: error, refused };
  } finally {
    stop.abort();
    await (await accepted)?.close();
  }
}

describe("mutual TLS", () => {
  it("carries messages both ways between holders of certificates of one CA", async () => {
    const listener = await listening(good.server);
    const [near, far] = await Promise.all([
      connectControl({ endpoint: listener.endpoint, credentials: good.client }),
      listener.acceptControl(),
    ]);
    await near.send({ type: "GO" });
    await far.send({ type: "RUNNING", resumeMs: 1 });
    expect(await far.receive()).toEqual({ type: "GO" });
    expect(await near.receive()).toEqual({ type: "RUNNING", resumeMs: 1 });
    await Promise.all([near.close(), far.close()]);
  });

  it("refuses a source whose certificate is from another CA, and says so on both sides", async () => {
    const { answer, refused } = await meet(good.server, { ...other.client, ca: good.client.ca });
    expect(answer).toMatchObject({ type: "REFUSE", code: "CERTIFICATE_REFUSED" });
    expect(refused).toMatchObject([{ code: "CERTIFICATE_REFUSED" }]);
  });

  it("refuses a source whose certificate has expired", async () => {
    const { answer, refused } = await meet(
      { ...good.server, ca: expired.server.ca },
      { ...expired.client, ca: good.client.ca },
    );
    expect(answer).toMatchObject({ type: "REFUSE", code: "CERTIFICATE_EXPIRED" });
    expect(refused).toMatchObject([{ code: "CERTIFICATE_EXPIRED" }]);
  });

  it("refuses a source without a certificate", async () => {
    const refused: DirtmapError[] = [];
    const listener = await listening(good.server, (error) => refused.push(error));
    const stop = new AbortController();
    const accepted = listener.acceptControl(stop.signal).catch(() => {});
    const socket = connectTls({ host: "127.0.0.1", port: listener.endpoint.port, ca: good.client.ca });
    await new Promise((resolve) => socket.on("error", resolve).on("close", resolve).on("data", resolve));
    socket.destroy();
    expect(refused).toMatchObject([
      { code: "CERTIFICATE_REFUSED", message: expect.stringContaining("no certificate") },
    ]);
    stop.abort();
    await accepted;
  });

  it.each([
    ["is from another CA", { ...other.server, ca: good.server.ca }, good.client, "CERTIFICATE_REFUSED"],
    ["has expired", expired.server, expired.client, "CERTIFICATE_EXPIRED"],
    ["is for another name", elsewhere.server, elsewhere.client, "CERTIFICATE_REFUSED"],
  ])("refuses a destination whose certificate %s", async (_, server, client, code) => {
    const { answer } = await meet(server, client);
    expect(answer).toBeInstanceOf(UsageError);
    expect(answer).toMatchObject({ code });
  });

  it("and plain TCP don't mix, and either side says so", async () => {
    const listener = await listening();
    const accepted = listener.acceptControl();
    const attempt = connectControl({ endpoint: { ...listener.endpoint, scheme: "tls" }, credentials: good.client });
    await expect(attempt).rejects.toMatchObject({ code: "NOT_TLS" });
    const far = await accepted;
    await expect(far.receive()).rejects.toThrow();
  });
});

describe("a listener", () => {
  it("says that the port is in use, and a source that nothing listens", async () => {
    const { endpoint } = await listening();
    await expect(listen({ endpoint })).rejects.toMatchObject({ code: "PORT_IN_USE" });
    const free = await listening();
    await free[Symbol.asyncDispose]();
    await expect(connectControl({ endpoint: free.endpoint })).rejects.toMatchObject({ code: "UNREACHABLE" });
    await expect(connectControl({ endpoint: { ...endpoint, host: "no.such.host.invalid" } })).rejects.toMatchObject({
      code: "UNREACHABLE",
    });
    await expect(free.accept()).rejects.toMatchObject({ code: "LISTENER_CLOSED" });
  });

  it("can be waited for until a signal", async () => {
    const listener = await listening();
    await expect(listener.acceptControl(AbortSignal.timeout(20))).rejects.toMatchObject({ name: "TimeoutError" });
    const socket = connectTcp(listener.endpoint.port, "127.0.0.1");
    const accepted = await listener.accept();
    accepted.destroy();
    socket.destroy();
  });
});

describe("credentials", () => {
  it("made for trying out are written so that only their owner can read the keys, and never over others", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dirtmap-certs-"));
    try {
      const paths = await writeCertificates(join(folder, "new"), good);
      expect(paths).toHaveLength(5);
      for (const side of ["server", "client"] as const) {
        expect(await loadCredentials(side, { folder: join(folder, "new") })).toEqual(good[side]);
        expect((await stat(credentialFiles(join(folder, "new"), side).key)).mode & 0o777).toBe(0o600);
      }
      await expect(writeCertificates(join(folder, "new"), good)).rejects.toMatchObject({ code: "FILE_EXISTS" });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("are checked before anything is started", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dirtmap-certs-"));
    try {
      const write = async (name: string, pem: string) => {
        await writeFile(join(folder, name), pem);
        return join(folder, name);
      };
      const cert = await write("cert", good.client.cert);
      const key = await write("key", good.client.key);
      const ca = await write("ca", good.client.ca);
      const load = (files: object) => loadCredentials("client", { cert, key, ca, ...files });
      expect(await load({})).toEqual(good.client);
      await expect(load({ key: await write("other", other.client.key) })).rejects.toThrow(
        /not that of the certificate/,
      );
      await expect(load({ cert: await write("old", expired.client.cert) })).rejects.toThrow(/expired on/);
      await expect(load({ ca: key })).rejects.toThrow(/holds no certificate/);
      await expect(load({ key: ca })).rejects.toThrow(/holds no private key/);
      await expect(load({ ca: join(folder, "none") })).rejects.toThrow(/can't be read: ENOENT/);
      await expect(loadCredentials("server", {})).rejects.toMatchObject({ code: "NO_CREDENTIALS" });
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
