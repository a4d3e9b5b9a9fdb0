// The commands that draw the same images, one for each label.

/** Returns a word for a POSIX shell. */
function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function fileName(request) {
  return `${request.label}.png`;
}

/** Returns the curl commands. @param {string} base - the address of the page. */
export function curl(requests, base, needsToken) {
  return requests
    .map((request) =>
      [
        `curl -sS ${quoted(new URL("v1/generate", base).href)}`,
        ...(needsToken ? ['  -H "Authorization: Bearer $TOKEN"'] : []),
        "  -H 'Content-Type: application/json' -H 'Accept: image/png'",
        `  -d ${quoted(JSON.stringify(request))}`,
        `  -o ${fileName(request)}`,
      ].join(" \\\n"),
    )
    .join("\n");
}

/** Returns the commands of the client. @param {object} server - as page/server.json has it. */
export function client(requests, host, server) {
  const connection = [`--target ${quoted(`${host}:${server.grpc_port}`)}`];
  if (server.tls) connection.push("--tls");
  if (server.needs_token) connection.push("--token-file token.txt");
  return requests
    .map((request) =>
      [
        "python -m serving.client generate",
        `  ${connection.join(" ")} --model ${quoted(request.model)}`,
        `  --label ${request.label} --count ${request.count} --seed ${request.seed}`,
        `  --sampler ${request.sampler.replace("SAMPLER_", "").toLowerCase()}` +
          ` --num-steps ${request.num_steps} --guidance-scale ${request.guidance_scale}`,
        `  --output ${fileName(request)}`,
      ].join(" \\\n"),
    )
    .join("\n");
}
