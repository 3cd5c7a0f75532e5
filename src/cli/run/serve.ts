import { fileURLToPath } from "node:url";
import { openStore } from "../../evidence/store/store.js";
import { defaultFeedFolder } from "../../observe/feed/folder.js";
import { readToken } from "../../observe/server/guard.js";
import { checkExposure, parseListenAddress } from "../../observe/server/listen-address.js";
import { serveDashboard } from "../../observe/server/server.js";
import type { ServeInput } from "../commands/serve.js";
import { evidenceIn } from "../kept/dashboard-evidence.js";
import { checkStore } from "../kept/store.js";
import { note, printResult } from "../output.js";
import { type Run, untilAborted } from "../run-command.js";

/** How long a page waits while another process is writing; then it is told to try again. */
const STORE_WAIT_MS = 250;

export const run: Run<ServeInput> = async ({ listen, tokenFile, store, json = false }, { signal, interrupts }) => {
  interrupts.tellFirst(() => {});
  const address = parseListenAddress(listen);
  const token = tokenFile === undefined ? undefined : readToken(tokenFile);
  checkExposure(address, token);
  // A store that can't be used is refused now, not at the first request.
  checkStore(store === undefined ? {} : { store });
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
  await untilAborted(signal);
};
