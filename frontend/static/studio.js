// The page's behaviour: every custom element is a file of its own and works on what the server rendered.
import "./elements/job-progress.js";
import "./elements/loss-curve.js";
import "./elements/preview-strip.js";
import "./elements/job-images.js";
import "./elements/image-grid.js";
import "./elements/light-box.js";
import "./elements/photo-drop.js";
import "./elements/crop-frame.js";
import "./elements/prompt-box.js";
import "./elements/seed-field.js";
import "./elements/method-choice.js";
import "./elements/region-canvas.js";
