// A photo in the browser before it is sent: turned by quarters, then cropped, as the studio does it after the upload.

const THUMBNAIL_PX = 320;
const STAGE_PX = 1200;
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
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
  return URL.createObjectURL(blob);
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
