import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { connect as connectTcp, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, describe, expect, it } from "vitest";
import { leakedDescriptors, openDescriptors } from "../../../test/support/descriptors.js";
import { type DirtmapError, UsageError } from "../../errors.js";
import { makeCertificates, writeCertificates } from "./certs.js";
import { connectControl } from "./connect.js";
import { credentialFiles, loadCredentials, type TlsCredentials } from "./credentials.js";
import { formatEndpoint, parseEndpoint } from "./endpoint.js";
import { checkHost } from "./host-name.js";
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

/** Waits for something that happens elsewhere in this process. */
async function until(happened: () => boolean): Promise<void> {
  for (const late = Date.now() + 20_000; !happened(); ) {
    if (Date.now() > late) throw new Error("it did not happen");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Something that listens and is no Dirtmap. */
async function otherServer(
  onConnection: (socket: Socket) => void,
): Promise<Pick<Listener, "endpoint"> & AsyncDisposable> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    onConnection(socket.on("error", () => {}));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return {
    endpoint: { scheme: "tcp", host: "127.0.0.1", port },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** Connections that say nothing. */
async function idlers(listener: Listener, count: number): Promise<Socket[]> {
  const sockets = Array.from({ length: count }, () => connectTcp(listener.endpoint.port, "127.0.0.1"));
  await Promise.all(
    sockets.map((socket) => new Promise((resolve) => socket.once("connect", resolve).on("error", resolve))),
  );
  return sockets;
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

describe("a host of a certificate", () => {
  it("is a name or an address", async () => {
    for (const host of ["localhost", "dst.example.com", "xn--bcher-kva.example", "10.0.0.7", "::1", "*.example.com"]) {
      expect(checkHost(host)).toBe(host);
    }
    for (const host of [
      "bad host!",
      "",
      "-a",
      "a-",
      "a..b",
      ".a",
      "a.",
      "256.1.1.1",
      "1.2.3",
      "a_b",
      "x".repeat(64),
      "[::1]",
    ]) {
      expect(() => checkHost(host), host).toThrow(expect.objectContaining({ code: "BAD_HOST" }));
      await expect(makeCertificates({ hosts: [host] }), host).rejects.toMatchObject({ code: "BAD_HOST" });
    }
  });

  it("is checked in an address by the same rule", () => {
    for (const text of ["tls://bad host!:1", "tls://-a:1", "tls://256.1.1.1:1", "tls://*.example.com:1"]) {
      expect(() => parseEndpoint(text), text).toThrow(expect.objectContaining({ code: "BAD_ADDRESS" }));
    }
  });
});

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
    const refused: DirtmapError[] = [];
    const plain = await listening(undefined, (error) => refused.push(error));
    const overTls = connectControl({ endpoint: { ...plain.endpoint, scheme: "tls" }, credentials: good.client });
    await expect(overTls).rejects.toMatchObject({ code: "NOT_TLS", remedy: expect.stringContaining("give tcp://") });
    await until(() => refused.length > 0);
    expect(refused).toMatchObject([{ code: "WRONG_SCHEME", message: expect.stringContaining("speaks tls://") }]);

    const tls = await listening(good.server, (error) => refused.push(error));
    await using control = await connectControl({ endpoint: { ...tls.endpoint, scheme: "tcp" } });
    const told = { code: "WRONG_SCHEME", remedy: expect.stringContaining("give the source tls://") };
    expect(await control.receive()).toMatchObject({ type: "REFUSE", ...told });
    expect(refused).toMatchObject([{}, told]);
  });

  it("is recommended where a source speaks plain TCP to some other TLS server", async () => {
    await using server = await otherServer((socket) => socket.end(Uint8Array.of(0x15, 3, 3, 0, 2, 2, 70)));
    const attempt = connectControl({ endpoint: server.endpoint });
    await expect(attempt).rejects.toMatchObject({ code: "WRONG_SCHEME" });
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
    await expect(free.acceptControl()).rejects.toMatchObject({ code: "LISTENER_CLOSED" });
  });

  it.each([
    ["tcp", undefined],
    ["tls", good],
  ] as const)("over %s meets a source while strangers say nothing", async (_, tls) => {
    const refused: DirtmapError[] = [];
    const listener = await listening(tls?.server, (error) => refused.push(error));
    const accepted = listener.acceptControl();
    const strangers = await idlers(listener, 20);
    await using near = await connectControl({ endpoint: listener.endpoint, credentials: tls?.client });
    await using far = await accepted;
    await near.send({ type: "GO" });
    expect(await far.receive()).toEqual({ type: "GO" });
    // None of them had to be given up on first.
    expect(refused).toEqual([]);
    for (const socket of strangers) socket.destroy();
    await until(() => refused.length === strangers.length);
  });

  it("makes the oldest stranger leave where there are too many, and still meets a source", async () => {
    const listener = await listening();
    const accepted = listener.acceptControl();
    const [oldest] = await idlers(listener, 1);
    const left = new Promise((resolve) => oldest.once("close", resolve).resume());
    const others = await idlers(listener, 70);
    await left;
    await using _near = await connectControl({ endpoint: listener.endpoint });
    await using _far = await accepted;
    for (const socket of others) socket.destroy();
  });

  it("takes something else for no source, and goes on waiting for one", async () => {
    const refused: DirtmapError[] = [];
    const listener = await listening(undefined, (error) => refused.push(error));
    const accepted = listener.acceptControl();
    const client = connectTcp(listener.endpoint.port, "127.0.0.1");
    client.end("GET / HTTP/1.0\r\n\r\n");
    await new Promise((resolve) => client.once("close", resolve).on("error", resolve).resume());
    expect(refused).toMatchObject([{ code: "FRAME_REFUSED" }]);
    await using _near = await connectControl({ endpoint: listener.endpoint });
    await using _far = await accepted;
  });

  it("tells a second source at once what it is busy with, and since when", async () => {
    const listener = await listening();
    const accepted = listener.acceptControl();
    await using first = await connectControl({ endpoint: listener.endpoint });
    const far = await accepted;
    const refusalOf = async () => {
      await using second = await connectControl({ endpoint: listener.endpoint });
      return await second.receive();
    };
    expect(await refusalOf()).toMatchObject({ type: "REFUSE", code: "BUSY", message: /a source at tcp:\/\/127.0.0.1/ });
    listener.describe("migration 0123abcd");
    const told = (await refusalOf()) as { message: string };
    expect(told.message).toMatch(/busy with migration 0123abcd, since 20\d\d-\d\d-\d\dT\S+Z$/);
    await first.close();
    await far.close();
    listener.occupy("the machine of migration 0123abcd, which runs here");
    expect(await refusalOf()).toMatchObject({
      code: "BUSY",
      message: /machine of migration 0123abcd, which runs here/,
    });
  });

  it("lets a source wait that comes while the last one's end is being seen to", async () => {
    const listener = await listening();
    const accepted = listener.acceptControl();
    const first = await connectControl({ endpoint: listener.endpoint });
    const far = await accepted;
    await Promise.all([first.close(), far.close()]);
    await using second = await connectControl({ endpoint: listener.endpoint });
    await using next = await listener.acceptControl();
    await second.send({ type: "GO" });
    expect(await next.receive()).toEqual({ type: "GO" });
  });

  it("leaves no descriptor open of sources and strangers that came and left, accepted or not", async () => {
    const before = openDescriptors();
    for (const tls of [undefined, good]) {
      const listener = await listening(tls?.server);
      const come = async () => await connectControl({ endpoint: listener.endpoint, credentials: tls?.client });
      const accepted = listener.acceptControl();
      const sources = [await come(), await accepted];
      for (let n = 0; n < 8; n++) {
        sources.push(await come());
        for (const socket of await idlers(listener, 2)) socket.destroy();
      }
      await Promise.all(sources.map((source) => source.close()));
      sources.splice(0);
      for (let n = 0; n < 8; n++) sources.push(await come());
      await Promise.all(sources.map((source) => source.close()));
      await listener[Symbol.asyncDispose]();
    }
    expect(await leakedDescriptors(before)).toEqual([]);
  });

  it("can be waited for until a signal", async () => {
    const listener = await listening();
    await expect(listener.acceptControl(AbortSignal.timeout(20))).rejects.toMatchObject({ name: "TimeoutError" });
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
