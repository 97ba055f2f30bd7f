// A photo in the browser before it is sent: turned by quarters, then cropped, as the studio does it after the upload.

const THUMBNAIL_PX = 320;
const STAGE_PX = 1200;
const NEAR_BITS = 6;
export const WHOLE = { x: 0, y: 0, width: 1, height: 1 };

/** The same part of the picture after another quarter clockwise. */
export function turned({ x, y, width, height }) {
  return { x: 1 - y - height, y: x, width: height, height: width };
}

export function isWhole(box) {
  return box.width >= 1 && box.height >= 1;
}

/** Address of the picture turned by `rotate` degrees and cropped to `box`, scaled down for the page. */
export async function shown(file, rotate, box = WHOLE, largest = THUMBNAIL_PX) {
  return URL.createObjectURL(await drawn(file, rotate, box, largest));
}

/** The bytes that will be judged: the file, or what an edit would make of it. */
export async function edited(file, rotate, box) {
  return !rotate && isWhole(box) ? file : drawn(file, rotate, box, Infinity);
}

async function drawn(file, rotate, box, largest) {
  const bitmap = await createImageBitmap(file);
  const sideways = rotate % 180 !== 0;
  const width = sideways ? bitmap.height : bitmap.width;
  const height = sideways ? bitmap.width : bitmap.height;
  const scale = Math.min(1, largest / Math.max(width * box.width, height * box.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * box.width * scale));
  canvas.height = Math.max(1, Math.round(height * box.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.scale(scale, scale);
  pen.translate(width / 2 - width * box.x, height / 2 - height * box.y);
  pen.rotate((rotate * Math.PI) / 180);
  pen.drawImage(bitmap, -bitmap.width / 2, -bitmap.height / 2);
  bitmap.close();
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

/** Lets a person draw the part to keep; null when they leave it. `dialog` holds a <crop-frame>. */
export async function askForCrop(dialog, source, box) {
  const frame = dialog.querySelector("crop-frame");
  frame.picture.src = source;
  await frame.picture.decode();
  frame.box = box;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  return dialog.returnValue === "crop" && frame.box.width > 0 && frame.box.height > 0 ? frame.box : null;
}

export const stagePx = STAGE_PX;

/** Whether two fingerprints (64 bits, hexadecimal) are of almost the same picture, as the studio judges it. */
export function near(one, other) {
  let apart = BigInt(`0x${one}`) ^ BigInt(`0x${other}`);
  let bits = 0;
  for (; apart > 0n; apart >>= 1n) bits += Number(apart & 1n);
  return bits <= NEAR_BITS;
}
