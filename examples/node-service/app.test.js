import assert from "node:assert/strict";
import { test } from "node:test";
import { service } from "./app.js";

test("a note that was written can be read", async () => {
  const app = service();
  const written = await app.request("/notes", { method: "POST", body: "milk" });
  assert.equal(written.status, 201);
  const { id } = await written.json();
  assert.deepEqual(await (await app.request(`/notes/${id}`)).json(), { id, text: "milk" });
  assert.equal((await app.request("/notes/none")).status, 404);
});
