import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import { addStoreOption, openStoreOf, type StoreOption } from "../options.js";
import { note, printResult, runCommand } from "../output.js";

interface ServeOptions extends StoreOption {
  readonly listen: string;
  readonly tokenFile?: string;
  readonly json?: boolean;
}

/** How long a page waits where another process is writing; then it is told to try again. */
const STORE_WAIT_MS = 250;

const EXAMPLES = `
Examples:
  dirtmap serve
  dirtmap serve --listen 127.0.0.1:0 --json
  (umask 077; openssl rand -hex 32 >token) && dirtmap serve --listen 0.0.0.0:7780 --token-file token

Shows this user's runs in progress, and the runs and benchmarks in the store; /metrics is for Prometheus, /api is JSON and
describes itself. Without a token it answers this machine only. It speaks plain HTTP: where others are to see it, put it
behind a proxy that speaks TLS, or use \`ssh -L 7780:127.0.0.1:7780\`. Ctrl-C or SIGTERM ends it.
`;

/** `dirtmap serve`: the dashboard. */
export function addServe(program: Command): void {
  const command = program
    .command("serve")
    .description("Serves a dashboard of runs in progress and past runs, an API, and metrics for Prometheus")
    .option("-l, --listen <address>", "HOST:PORT; port 0: the system chooses", DEFAULTS.dashboard);
  addStoreOption(command)
    .option("--token-file <file>", "a file with the token that whoever asks has to show")
    .option("--json", "print the address as JSON")
    .addHelpText("after", `${EXAMPLES}\n${exitCodesHelp()}`)
    .action(run);
}

async function run(options: ServeOptions): Promise<void> {
  const { json = false } = options;
  await runCommand({ json, onInterrupt: () => {} }, async (signal) => {
    const [{ parseListenAddress, checkExposure }, { readToken }] = await Promise.all([
      import("../../observe/server/listen-address.js"),
      import("../../observe/server/guard.js"),
    ]);
    const address = parseListenAddress(options.listen);
    const token = options.tokenFile === undefined ? undefined : readToken(options.tokenFile);
    checkExposure(address, token);
    // One that can't be used is told of now, not at the first request.
    (await openStoreOf(options))?.[Symbol.dispose]();

    const [{ serveDashboard }, { defaultFeedFolder }, { openStore }, { evidenceIn }] = await Promise.all([
      import("../../observe/server/server.js"),
      import("../../observe/feed/folder.js"),
      import("../../evidence/store/store.js"),
      import("../dashboard-evidence.js"),
    ]);
    const { store } = options;
    const evidence = evidenceIn(() => openStore(store === false ? undefined : store, { waitMs: STORE_WAIT_MS }));
    await using server = await serveDashboard({
      address,
      token,
      evidence,
      feedFolder: defaultFeedFolder(),
      page: fileURLToPath(new URL("../../../web", import.meta.url)),
      note,
    });
    if (json) printResult({ url: server.url }, { json, text: () => "" });
    else note(`the dashboard is at ${server.url} · Ctrl-C ends it`);
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    return EXIT_CODES.done.code;
  });
}
