/**
 * save downloads a recording under a name that people understand. Browsers
 * ignore the name of a link to another origin, so the bytes are fetched first
 * (some 10 MB); where storage does not allow that, the file opens in a tab.
 */
export async function save(url: string, name: string): Promise<void> {
  let blob: Blob;
  try {
    const res = await fetch(url, { credentials: "omit" });
    if (!res.ok) throw new Error(`status ${res.status}`);
    blob = await res.blob();
  } catch {
    window.open(url, "_blank", "noopener");
    return;
  }
  const a = document.createElement("a");
  a.href = URL.createObjectURL(blob);
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60_000); // the browser reads it in its own time
}
