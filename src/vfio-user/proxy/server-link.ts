import { flagsOf, getFeature, setFeature, stateOf, supportOf } from "../../host/device-feature.js";
import type { MigrationSupport } from "../../host/host.js";
import type { Call } from "../../host/iommufd-checks.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { connectTo, UnixSocket } from "../../sys/unix-socket.js";
import { UapiError } from "../../uapi/errno.js";
import {
  type MigState,
  VFIO_DEVICE_STATE,
  VFIO_PCI_REGION_INDEX,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from "../../uapi/vfio.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_DEFAULT_DATA_XFER,
  VFIO_USER_DEFAULT_DMA_MAPS,
  VFIO_USER_DEFAULT_MAX_FDS,
  VFIO_USER_MINOR,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import { readAnswer } from "../client/agreement.js";
import { infoByMessages } from "../client/device-info.js";
import { MessageFeatures, type NotedMappings } from "../client/feature.js";
import { closeFds, MessageSocket } from "../message-socket.js";
import { MAX_BITMAP_BYTES } from "../server/bitmap.js";
import { MAX_DMA_MAPS } from "../server/client-memory.js";
import { MAX_MSG_FDS, type ServerLimits } from "../server/negotiation.js";
import { MAX_TRANSFER } from "../server/region-access.js";
import { type Capabilities, writeVersion } from "../version-data.js";
import { UnderWay } from "./under-way.js";

/** Bytes of the largest message of the server's: a bitmap, with what is before it. */
const MAX_PAYLOAD = MAX_BITMAP_BYTES + 4096;

/** Bytes of the largest configuration space. */
const MAX_CONFIG_BYTES = 4096;

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";

/** What a server was found to have. */
export interface ServerFacts {
  /** Null: its device can't be migrated. */
  readonly migration: MigrationSupport | null;
  readonly dataSize: boolean;
  /** It logs its device's DMA. */
  readonly log: boolean;
  /** Its own commands come on a socket of their own. */
  readonly twin: boolean;
}

/** The connection to the server that a proxy stands before. */
export class ServerLink implements Disposable {
  readonly path: string;
  readonly socket: MessageSocket;
  readonly commands: UnderWay;
  /** The socket of the server's own commands, if it is another one. */
  twin: MessageSocket | null = null;
  /** What a client may be told: as much as both can. */
  limits: ServerLimits = limitsOf({});
  facts: ServerFacts = { migration: null, dataSize: false, log: false, twin: false };
  readonly features: MessageFeatures;

  /** @throws UapiError ENOENT, ECONNREFUSED … where nobody listens */
  constructor(path: string, mappings: NotedMappings) {
    this.path = path;
    this.socket = new MessageSocket(connectTo(path), MAX_PAYLOAD);
    this.commands = new UnderWay(this.socket, `the server at ${path}`);
    this.features = new MessageFeatures(this.commands, mappings);
  }

  /**
   * Agrees on the version, and finds out what the server has.
   * @throws UapiError EPROTONOSUPPORT, EPROTO; ECONNRESET where it has another client
   */
  async greet(): Promise<void> {
    const what = "VFIO_USER_VERSION";
    const proposal = writeVersion(VFIO_USER_MINOR, {
      max_msg_fds: MAX_MSG_FDS,
      max_data_xfer_size: MAX_TRANSFER,
      pgsizes: PAGE_SIZE,
      write_multiple: true,
      // While a server waits for the answer to a DMA on the one socket, some take no command there.
      twin_socket: { supported: true },
    });
    const { payload, fds } = await this.commands.ask(VFIO_USER_COMMAND.VERSION, what, proposal);
    try {
      const capabilities = readAnswer(payload);
      this.limits = limitsOf(capabilities);
      if (capabilities.twin_socket?.supported === true) this.#takeTwin(fds, capabilities.twin_socket.fd_index ?? 0);
    } finally {
      closeFds(fds);
    }
    this.facts = await this.#findOut();
  }

  /** @throws UapiError EPROTO where there is no such descriptor */
  #takeTwin(fds: number[], index: number): void {
    const fd = fds.at(index);
    if (fd === undefined) {
      const attempted = `take descriptor ${index} for the twin socket, where ${fds.length} came`;
      throw new UapiError("EPROTO", { syscall: "VFIO_USER_VERSION", attempted });
    }
    fds[index] = -1;
    this.twin = new MessageSocket(new UnixSocket(fd), MAX_TRANSFER + 4096);
  }

  async #findOut(): Promise<ServerFacts> {
    const migration = await this.#support();
    return {
      migration,
      dataSize: migration !== null && (await this.features.probe("MIG_DATA_SIZE")),
      log: (await this.features.probe("DMA_LOGGING_START")) && (await this.features.probe("DMA_LOGGING_REPORT")),
      twin: this.twin !== null,
    };
  }

  async #support(): Promise<MigrationSupport | null> {
    if (!(await this.features.probe("MIG_DEVICE_STATE")) || !(await this.features.probe("MIGRATION"))) return null;
    const call = { syscall: "VFIO_DEVICE_FEATURE_MIGRATION", attempted: "ask how the device migrates" };
    const { flags } = await getFeature(this.features, "MIGRATION", vfio_device_feature_migration, call);
    const support = supportOf(flags);
    return flagsOf(support) === 0n ? null : support;
  }

  /** RUNNING of a device that can't be migrated. */
  async state(): Promise<MigState> {
    if (this.facts.migration === null) return "RUNNING";
    const call: Call = { syscall: SET_STATE, attempted: "ask for the device's state" };
    const layout = vfio_device_feature_mig_state;
    const { device_state } = await getFeature(this.features, "MIG_DEVICE_STATE", layout, call);
    const state = stateOf(device_state);
    if (state !== undefined) return state;
    throw new UapiError("EPROTO", { ...call, attempted: `${call.attempted}: there is none of number ${device_state}` });
  }

  async requestState(next: MigState): Promise<void> {
    const call: Call = { syscall: SET_STATE, attempted: `move the device to ${next}` };
    const values = { device_state: VFIO_DEVICE_STATE[next], data_fd: -1 };
    await setFeature(this.features, "MIG_DEVICE_STATE", vfio_device_feature_mig_state, call, { values });
  }

  /** VFIO_USER_DEVICE_RESET */
  async reset(): Promise<void> {
    await this.commands.call(VFIO_USER_COMMAND.DEVICE_RESET, "VFIO_USER_DEVICE_RESET", null);
  }

  /** A part of the configuration space; all of it where nothing is said. */
  async readConfig(offset = 0, bytes?: number): Promise<Uint8Array> {
    const region = VFIO_PCI_REGION_INDEX.CONFIG;
    let count = bytes;
    if (count === undefined) {
      const size = (await infoByMessages(this.commands).region(region))?.size ?? 0n;
      count = size > BigInt(MAX_CONFIG_BYTES) ? MAX_CONFIG_BYTES : Number(size);
    }
    const request = vfio_user_region_access.encode({ offset: BigInt(offset), region, count });
    const answer = await this.commands.call(VFIO_USER_COMMAND.REGION_READ, "VFIO_USER_REGION_READ", request);
    return answer.subarray(vfio_user_region_access.size);
  }

  /** Ends the connection: what is under way fails with the error. */
  end(error: UapiError): void {
    this[Symbol.dispose]();
    this.commands.fail(error);
  }

  [Symbol.dispose](): void {
    this.twin?.[Symbol.dispose]();
    this.socket[Symbol.dispose]();
  }
}

function limitsOf(server: Capabilities): ServerLimits {
  return {
    maxFds: Math.min(MAX_MSG_FDS, server.max_msg_fds ?? VFIO_USER_DEFAULT_MAX_FDS),
    maxTransfer: Math.min(MAX_TRANSFER, server.max_data_xfer_size ?? VFIO_USER_DEFAULT_DATA_XFER),
    maxDmaMaps: Math.min(MAX_DMA_MAPS, server.max_dma_maps ?? VFIO_USER_DEFAULT_DMA_MAPS),
    pageSizes: server.pgsizes ?? PAGE_SIZE,
    writeMultiple: server.write_multiple === true,
  };
}
