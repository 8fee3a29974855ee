// Calls huggingface.js, whose package is below the folder NODE_CLIENT.
//
// Usage: `node client.mjs ACTION ARGUMENTS`, with the arguments as one JSON value. Prints the result as JSON. The endpoint and
// the cache come from the environment (HF_ENDPOINT, HF_HUB_CACHE).

import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const hub = createRequire(`${process.env.NODE_CLIENT}/`)("@huggingface/hub");
const hubUrl = process.env.HF_ENDPOINT;
const cacheDir = process.env.HF_HUB_CACHE;
// It reports its progress on stdout.
console.debug = () => {};

const sha256 = (bytes) => createHash("sha256").update(Buffer.from(bytes)).digest("hex");
const all = async (entries) => {
  const found = [];
  for await (const entry of entries) found.push(entry);
  return found;
};
const byPath = (entries, value) => Object.fromEntries(entries.map((entry) => [entry.path, value(entry)]));
const place = ({ id, kind, revision }) => ({ repo: { type: kind, name: id }, revision, hubUrl });

/** Downloads a revision into the cache, and returns the path of its snapshot. */
const snapshot = (request) => hub.snapshotDownload({ ...place(request), cacheDir });

/** Reads files without a cache: the whole file, its last 5 bytes, and how much `fileDownloadInfo` says there is. */
async function read(request) {
  const found = {};
  for (const path of request.files) {
    const blob = await hub.downloadFile({ ...place(request), path });
    const info = await hub.fileDownloadInfo({ ...place(request), path });
    found[path] = blob && {
      sha256: sha256(await blob.arrayBuffer()),
      end: Buffer.from(await blob.slice(Math.max(blob.size - 5, 0)).arrayBuffer()).toString("hex"),
      size: info.size,
      etag: info.etag,
    };
  }
  return found;
}

/** Returns what the API tells about a revision. */
async function browse(request) {
  const { id, kind, revision, files } = request;
  const info = { model: hub.modelInfo, dataset: hub.datasetInfo, space: hub.spaceInfo }[kind];
  const tree = await all(hub.listFiles({ ...place(request), recursive: true, expand: true }));
  const paths = await hub.pathsInfo({ ...place(request), paths: files, expand: true });
  const exists = {};
  for (const path of files) exists[path] = await hub.fileExists({ ...place(request), path });
  return {
    sha: (await info({ name: id, revision, hubUrl, additionalFields: ["sha"] })).sha,
    tree: byPath(tree.filter((entry) => entry.type === "file"), (entry) => entry.lfs?.oid ?? entry.oid),
    paths: byPath(paths, (entry) => entry.lastCommit.id),
    exists,
    user: (await hub.whoAmI({ hubUrl, accessToken: "hf_token" })).type,
    lacks: await hub.repoExists({ repo: { type: kind, name: "no/such-repo" }, hubUrl }),
  };
}

const [action, request] = process.argv.slice(2);
try {
  console.log(JSON.stringify({ result: await { snapshot, read, browse }[action](JSON.parse(request)) }));
} catch (error) {
  console.log(JSON.stringify({ error: String(error) }));
}
