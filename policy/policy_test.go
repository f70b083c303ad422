package policy_test

import (
	"slices"
	"testing"

	"openmesh/policy"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	circles := policy.Circles{"ops": {"did:a", "did:b"}, "dev": {"did:b"}, "empty": nil}
	for _, tc := range []struct {
		circles policy.Circles
		request policy.Request
		want    policy.Effect
	}{
		{circles, policy.Request{On: policy.Call, Agent: "did:x"}, policy.Allow},
		{circles, policy.Request{On: policy.Call, Agent: "did:a", Circle: "ops"}, policy.Allow},
		{circles, policy.Request{On: policy.Call, Agent: "did:a", Circle: "dev"}, policy.Deny},
		{circles, policy.Request{On: policy.Discover, Agent: "did:a", Circle: "empty"}, policy.Deny},
		{circles, policy.Request{On: policy.Discover, Agent: "did:a", Circle: "unknown"}, policy.Deny},
		{circles, policy.Request{On: policy.Call, Agent: "", Circle: "ops"}, policy.Deny},
		{nil, policy.Request{On: policy.Call, Agent: "did:a", Circle: "ops"}, policy.Deny},
	} {
		got := tc.circles.Decide(tc.request)
		if got.Effect != tc.want || got.Rule == "" {
			t.Errorf("Decide(%+v) = %+v, want %s", tc.request, got, tc.want)
		}
	}
	if got := circles.Of("did:b"); !slices.Equal(got, []string{"dev", "ops"}) {
		t.Errorf("Of = %v", got)
	}
}
