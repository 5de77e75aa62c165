// The videos of items. They are fetched with the key, as an address must not hold it, and kept while they are near.

import { ask } from "../studio/api.js";

export class Clips {
  urls = new Map(); // opaque name to a promise of its blob: URL

  /** A promise of the addresses of an item's videos. One that fails is asked for again the next time. */
  of(item) {
    return Promise.all(item.videos.map(name => {
      if (!this.urls.has(name)) {
        const url = ask(`review/videos/${name}`).then(response => response.blob()).then(URL.createObjectURL);
        url.catch(() => this.urls.delete(name));
        this.urls.set(name, url);
      }
      return this.urls.get(name);
    }));
  }

  /** Forget all videos but those of these items. */
  keep(items) {
    const near = new Set(items.flatMap(item => item.videos));
    for (const [name, url] of this.urls) {
      if (near.has(name)) continue;
      this.urls.delete(name);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
}
